/* SPDX-License-Identifier: Apache-2.0
 * What the files of the C core's test share: core.c runs all, core_values.c says values another
 * way, core_attention.c attention, core_conv.c convolutions, core_errors.c gives what is refused,
 * core_stop.c stops calls, core_teams.c tries threads, forks and OpenMP runtimes.
 */
#ifndef CORE_H
#define CORE_H

#include "../csrc/vgq.h"

#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition, ...)                                                         \
    do {                                                                              \
        checks++;                                                                     \
        if (!(condition)) {                                                           \
            printf("%s:%d: %s [isa %s] ", __FILE__, __LINE__, #condition, vgq_isa()); \
            printf(__VA_ARGS__);                                                      \
            printf("\n");                                                             \
            exit(1);                                                                  \
        }                                                                             \
    } while (0)

extern size_t checks;

enum { CORE_NUMBERS = 12 * 1024 };
extern float numbers[CORE_NUMBERS]; /* finite, -1 to 1 */

void test_values(void);           /* on the instruction set in use */
void test_errors(void);           /* likewise */
void test_convolutions(void);     /* likewise */
void test_attention_values(void); /* likewise */
void test_exponentials(uint32_t step);
void test_stopping(void); /* on the best */
void test_teams(void);    /* likewise */
void test_runtimes(int count, char **paths);

#endif
