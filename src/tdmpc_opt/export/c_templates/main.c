/* Read observations from stdin, one a line, and write the actions to stdout, one a line.
 *
 * Usage: ${prefix} [TASK]; TASK is a name, and may be left out where there is one task.
 * Writes "error: REASON" where a line gives no action.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "${prefix}.h"

static const char *const reasons[] = {
    "",
    "the observation contains NaN, infinity or a number above 1e15",
    "the network overflows on this observation; check the units",
    "unknown task",
};

/* Read a line without its end; return 1, 0 if it is too long or has a zero byte, or EOF. */
static int next_line(char *line, int size)
{
    int c, count = 0, whole = 1, empty = 1;
    while ((c = getchar()) != '\n' && c != EOF) {
        empty = 0;
        if (c == '\0' || count == size - 1) {
            whole = 0;
        } else {
            line[count++] = (char)c;
        }
    }
    line[count] = '\0';
    return c == EOF && empty ? EOF : whole;
}

/* Read the numbers of a line; return whether there are as many as the task has. */
static int read_line(char *line, int width, float *obs)
{
    int count = 0;
    for (char *word = strtok(line, " \t\r\n"); word; word = strtok(NULL, " \t\r\n")) {
        char *end;
        const float number = strtof(word, &end);
        if (*end != '\0' || count == width) {
            return 0;
        }
        obs[count++] = number;
    }
    return count == width;
}

int main(int argc, char **argv)
{
    static char line[64 * ${upper}_OBS + 2];
    float obs[${upper}_OBS], action[${upper}_ACTION];
    int task = ${upper}_TASKS == 1 ? 0 : -1;
    for (int i = 0; argc == 2 && i < ${upper}_TASKS; ++i) {
        if (strcmp(argv[1], ${prefix}_task_names[i]) == 0) {
            task = i;
        }
    }
    if (task < 0 || argc > 2) {
        fprintf(stderr, "usage: %s TASK; tasks:", argv[0]);
        for (int i = 0; i < ${upper}_TASKS; ++i) {
            fprintf(stderr, " %s", ${prefix}_task_names[i]);
        }
        fprintf(stderr, "\n");
        return 2;
    }
    for (int whole; (whole = next_line(line, sizeof line)) != EOF;) {
        if (!whole || !read_line(line, ${prefix}_obs_width[task], obs)) {
            printf("error: a line needs %d numbers\n", ${prefix}_obs_width[task]);
        } else {
            const int status = ${prefix}_act(task, obs, action);
            if (status != ${upper}_OK) {
                printf("error: %s\n", reasons[status]);
            } else {
                for (int i = 0; i < ${prefix}_action_width[task]; ++i) {
                    printf(i ? " %.9g" : "%.9g", action[i]);
                }
                printf("\n");
            }
        }
        fflush(stdout);
    }
    return 0;
}
