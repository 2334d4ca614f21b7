/* SPDX-License-Identifier: Apache-2.0
 * The devices that this process can use, and why CUDA refused a call. */
#include "common.cuh"

int vgq_cuda_devices(void)
{
    int count = 0;
    return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

const char *vgq_cuda_error(void)
{
    const cudaError_t error = cudaGetLastError();
    if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorUnsupportedPtxVersion)
        return "this build has no kernels for this GPU; build again with VGGTQUANT_CUDA_ARCH "
               "naming its compute capability, 75 or more";
    return cudaGetErrorString(error);
}
