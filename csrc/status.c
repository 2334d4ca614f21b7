/* SPDX-License-Identifier: Apache-2.0
 * The message of each status, for the fronts of the CPU and of CUDA. */
#include "vgq.h"

const char *vgq_message(vgq_status status)
{
    static const char *const messages[VGQ_STATUSES] = {
        [VGQ_OK] = "ok",
        [VGQ_EINVAL] =
            "a null pointer, an unknown format or dtype, or sizes that do not fit together",
        [VGQ_EISA] = "an instruction set that is unknown or does not run on this machine",
        [VGQ_EPACKED] = "no packed weights, or cut short; pack the weight again",
        [VGQ_ELAYOUT] = "packed weights of another version or layout; pack the weight again",
        [VGQ_ECUDA] = "CUDA refused the launch",
        [VGQ_EDEPTH] = "a row too long for exact 32-bit sums",
        [VGQ_ESCALE] = "weight_scale must be positive and finite everywhere",
        [VGQ_EFACTOR] = "weight_factor must lie in 1..15, beside zero points in 1..8",
        [VGQ_EZERO] = "weight_zero_point must lie in -8..7",
        [VGQ_ESTOPPED] = "stopped by its caller",
    };
    return (unsigned)status < VGQ_STATUSES ? messages[status] : "unknown status";
}
