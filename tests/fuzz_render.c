/* SPDX-License-Identifier: Apache-2.0
 * The part of fuzz_core.c for csrc/render, whose names are its own. */
#include "../csrc/render/render.h"

#include <stdlib.h>
#include <string.h>

void fuzz_render(const uint8_t *data, size_t size);

void fuzz_render(const uint8_t *data, size_t size)
{
    enum { SHAPES = 3, TEXTURES = 9, LIGHTS = 2, WIDTH = 7, HEIGHT = 5 };
    struct {
        vgq_render_shape shapes[SHAPES];
        vgq_render_texture textures[TEXTURES];
        vgq_render_light lights[LIGHTS];
        vgq_render_camera camera;
    } all;
    if (size < 12)
        return;
    for (size_t i = 0; i < sizeof(all); i++)
        ((uint8_t *)&all)[i] = data[i % size];
    /* What vgq_render_check would refuse, most inputs would have. */
    for (int i = 0; i < SHAPES; i++) {
        all.shapes[i].kind = i ? 1 + (float)(data[i] % 12) / 4 : 0; /* three quarters are no kind */
        all.shapes[i].texture = i ? (float)(data[3 + i] % TEXTURES) : 0;
    }
    for (int i = 0; i < TEXTURES; i++) {
        all.textures[i].kind = (float)((data[i] >> 3) % (2 * VGQ_RENDER_TEXTURE_KINDS)) / 2;
        all.textures[i].seed = (float)data[i];
    }
    const vgq_render_scene scene = {
        all.shapes, all.textures,     all.lights,        data[0] % (SHAPES + 1),
        TEXTURES,   data[1] % LIGHTS, {1.0f, 0.5f, 0.1f}};
    if (vgq_render_check(&scene))
        return;
    uint8_t *const rgb = malloc(WIDTH * HEIGHT * 3);
    float *const depth = malloc(WIDTH * HEIGHT * sizeof(float));
    float *const points = malloc(WIDTH * HEIGHT * 3 * sizeof(float));
    if (!rgb || !depth || !points)
        abort();
    vgq_render_rows(&scene, &all.camera, WIDTH, HEIGHT, 0, HEIGHT, data[2] & 1, rgb, depth, points);
    vgq_mean_norm(WIDTH * HEIGHT, points);
    free(rgb);
    free(depth);
    free(points);
}
