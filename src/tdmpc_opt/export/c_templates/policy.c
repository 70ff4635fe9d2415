/* Checks and padding around the generated network above. */

#include "${prefix}.h"

const char *const ${prefix}_task_names[${upper}_TASKS] = {$names};
const int ${prefix}_obs_width[${upper}_TASKS] = {$obs_widths};
const int ${prefix}_action_width[${upper}_TASKS] = {$action_widths};
const float ${prefix}_rate_hz[${upper}_TASKS] = {$rates};

/* Return whether a number is finite and at most a positive bound in magnitude.
 * The bits are compared because -ffast-math removes comparisons with NaN. */
static int within(float value, float bound)
{
    uint32_t bits, limit;
    memcpy(&bits, &value, sizeof bits);
    memcpy(&limit, &bound, sizeof limit);
    return (bits & UINT32_C(0x7fffffff)) <= limit;
}

int ${prefix}_act(int task, const float *obs, float *action)
{
    float padded[1][${upper}_OBS] = {{0.0f}};
    float found[1][${upper}_ACTION];
    if (task < 0 || task >= ${upper}_TASKS) {
        return ${upper}_UNKNOWN_TASK;
    }
    for (int i = 0; i < ${prefix}_obs_width[task]; ++i) {
        if (!within(obs[i], 1e15f)) {
            return ${upper}_BAD_OBSERVATION;
        }
        padded[0][i] = obs[i];
    }
    $call
    for (int i = 0; i < ${prefix}_action_width[task]; ++i) {
        if (!within(found[0][i], 1.001f)) { /* rounding of tanh */
            return ${upper}_BAD_ACTION;
        }
    }
    for (int i = 0; i < ${prefix}_action_width[task]; ++i) {
        action[i] = found[0][i] > 1.0f ? 1.0f : found[0][i] < -1.0f ? -1.0f : found[0][i];
    }
    return ${upper}_OK;
}
