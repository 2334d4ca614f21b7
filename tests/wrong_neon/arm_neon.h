/* SPDX-License-Identifier: Apache-2.0
 * Arm's integer products, each one too large: the compiler finds this file before its own in a
 * build with -DVGQ_WRONG_MODELS, for the test of selfcheck.c (tests/test_core.py). */
#ifndef VGQ_TEST_WRONG_NEON_H
#define VGQ_TEST_WRONG_NEON_H

#include_next <arm_neon.h>

#define vdotq_laneq_s32(...) vaddq_s32(vdotq_laneq_s32(__VA_ARGS__), vdupq_n_s32(1))
#define vmmlaq_s32(...) vaddq_s32(vmmlaq_s32(__VA_ARGS__), vdupq_n_s32(1))

#endif
