/* The policy of $title, written by tdmpc-opt $version from $source. Do not edit.
 *
 * C99, no heap, no global state; the only dependency is libm. Calls from several threads
 * are safe. An action uses about $stack_bytes bytes of stack.
 *
 * The numbers in order. The range of an action is what -1 and 1 stand for.
$contract */
#ifndef ${upper}_H
#define ${upper}_H

#ifdef __cplusplus
extern "C" {
#endif

#define ${upper}_TASKS $tasks
#define ${upper}_OBS $obs /* numbers of the widest observation */
#define ${upper}_ACTION $action /* numbers of the widest action, each in [-1, 1] */

enum ${prefix}_status {
    ${upper}_OK = 0,
    ${upper}_BAD_OBSERVATION = 1, /* NaN, infinity or a magnitude above 1e15 */
    ${upper}_BAD_ACTION = 2, /* the network overflowed: check the units of the sensors */
    ${upper}_UNKNOWN_TASK = 3
};

/* By task id: its name, the widths of its observation and its action, and its actions a second
 * (0 where they are not known). */
extern const char *const ${prefix}_task_names[${upper}_TASKS];
extern const int ${prefix}_obs_width[${upper}_TASKS];
extern const int ${prefix}_action_width[${upper}_TASKS];
extern const float ${prefix}_rate_hz[${upper}_TASKS];

/* Choose the action for an observation.
 *
 * obs has ${prefix}_obs_width[task] numbers, action takes ${prefix}_action_width[task].
 * Returns a ${prefix}_status. Only ${upper}_OK writes to action, so that a caller who goes on
 * keeps the last action; set it to 0 to release the actuators instead.
 */
int ${prefix}_act(int task, const float *obs, float *action);

#ifdef __cplusplus
}
#endif

#endif
