/* Run a policy on a bare Cortex-M and report through semihosting, for benchmarks/microcontroller.py.
 *
 * test.h, which that script writes, defines OBS, ACTION, ACT, TASK, ROWS and
 * `static const float rows[ROWS][OBS]` in the section .test.
 */
#include <stdint.h>

#include "policy.h"
#include "test.h"

extern uint32_t data_source[], data_start[], data_end[], bss_start[], bss_end[];
extern uint32_t paint_end[], stack_top[];

#define SYST_CSR (*(volatile uint32_t *)0xe000e010u)
#define SYST_RVR (*(volatile uint32_t *)0xe000e014u)
#define SYST_CVR (*(volatile uint32_t *)0xe000e018u)
#define CPACR (*(volatile uint32_t *)0xe000ed88u)
#define PAINT 0xdeadbeefu

static void host(int operation, const void *argument)
{
    register int r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
}

static void print(const char *name, uint32_t value)
{
    char text[9];
    for (int i = 0; i < 8; ++i) {
        text[i] = "0123456789abcdef"[(value >> (28 - 4 * i)) & 15u];
    }
    text[8] = '\0';
    host(4, name);
    host(4, " ");
    host(4, text);
    host(4, "\n");
}

static void run(void)
{
    uint32_t ticks = 0;
    SYST_RVR = 0xffffffu;
    SYST_CSR = 5u; /* on, counting processor cycles */
    for (int row = 0; row < ROWS; ++row) {
        union {
            float number;
            uint32_t bits;
        } action[ACTION];
        const uint32_t before = SYST_CVR;
        const int status = ACT(TASK, rows[row], &action[0].number);
        ticks += (before - SYST_CVR) & 0xffffffu;
        print("status", (uint32_t)status);
        for (int i = 0; i < ACTION; ++i) {
            print("action", action[i].bits);
        }
    }
    print("ticks", ticks);
}

void reset(void)
{
    CPACR |= 0xf00000u; /* the floating point unit */
    __asm__ volatile("dsb\n isb");
    for (uint32_t *to = data_start, *from = data_source; to < data_end; ++to, ++from) {
        *to = *from;
    }
    for (uint32_t *word = bss_start; word < bss_end; ++word) {
        *word = 0;
    }
    for (uint32_t *word = bss_end; word < paint_end; ++word) {
        *word = PAINT;
    }
    run();
    uint32_t *lowest = bss_end;
    while (lowest < paint_end && *lowest == PAINT) {
        ++lowest;
    }
    print("stack", (uint32_t)((uint8_t *)stack_top - (uint8_t *)lowest));
    host(0x18, (const void *)0x20026); /* end of the program */
    for (;;) {
    }
}

__attribute__((section(".vectors"), used)) static const void *const vectors[16] = {
    stack_top, (const void *)reset,
};
