/* Read observations from stdin, one a line, and write the actions to stdout, one a line.
 *
 * Usage: ${prefix}_main [TASK]; TASK is a name, and may be left out where there is one task.
 * Writes "error: REASON" where a line gives no action, goes on with the next line, and returns
 * 1 at the end.
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

/* Read the numbers of a line; return 1, 0 where they are not as many as the task has, or EOF. */
static int read_line(int width, float *obs)
{
    static char line[64 * ${upper}_OBS + 2];
    size_t length = 0;
    int count = 0, plain = 1, c;
    while ((c = getchar()) != '\n' && c != EOF) {
        plain = plain && c != '\0' && length + 1 < sizeof line;
        if (plain) {
            line[length++] = (char)c;
        }
    }
    if (c == EOF && plain && length == 0) {
        return EOF;
    }
    line[length] = '\0';
    for (char *word = strtok(line, " \t\r"); plain && word; word = strtok(NULL, " \t\r")) {
        char *end;
        const float number = strtof(word, &end);
        if (*end != '\0' || count == width) {
            return 0;
        }
        obs[count++] = number;
    }
    return plain && count == width;
}

int main(int argc, char **argv)
{
    float obs[${upper}_OBS], action[${upper}_ACTION];
    int task = ${upper}_TASKS == 1 && argc == 1 ? 0 : -1, failed = 0;
    for (int i = 0; argc == 2 && i < ${upper}_TASKS; ++i) {
        if (strcmp(argv[1], ${prefix}_task_names[i]) == 0) {
            task = i;
        }
    }
    if (task < 0) {
        fprintf(stderr, "usage: %s TASK; tasks:", argv[0]);
        for (int i = 0; i < ${upper}_TASKS; ++i) {
            fprintf(stderr, " %s", ${prefix}_task_names[i]);
        }
        fprintf(stderr, "\n");
        return 2;
    }
    for (int read; (read = read_line(${prefix}_obs_width[task], obs)) != EOF;) {
        const int status = read ? ${prefix}_act(task, obs, action) : -1;
        failed = failed || status != ${upper}_OK;
        if (!read) {
            printf("error: a line needs %d numbers\n", ${prefix}_obs_width[task]);
        } else if (status != ${upper}_OK) {
            printf("error: %s\n", reasons[status]);
        } else {
            for (int i = 0; i < ${prefix}_action_width[task]; ++i) {
                printf(i ? " %.9g" : "%.9g", action[i]);
            }
            printf("\n");
        }
        if (fflush(stdout)) {
            perror("stdout");
            return 1;
        }
    }
    if (ferror(stdin)) {
        perror("stdin");
        return 1;
    }
    return failed;
}
