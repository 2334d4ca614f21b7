// SPDX-License-Identifier: Apache-2.0
// Closed-form ray caster for the rendered scenes: textured boxes, ellipsoids, cylinders and one
// room around them, several lights, no shadows.  Plain C11 that owns nothing: caller's buffers, no
// allocation, no globals, no libm but the exact sqrt.  Built without contraction
// (-ffp-contract=off), every pixel is the same bits on every machine, and rows are independent, so
// that any split of them over threads gives the same image.
//
// Camera convention: OpenCV (x right, y down, z forward).  The ray of pixel (u, v) passes through
// ((u - W/2) / fx, (v - H/2) / fy, 1): pixel coordinates are integers at pixel centres and the
// principal point is W/2, H/2, which is how VGGT unprojects depth.
#ifndef VGQ_RENDER_H
#define VGQ_RENDER_H

#include <stddef.h>
#include <stdint.h>

#define VGQ_RENDER_SHAPES 96

typedef enum {
    VGQ_ROOM,
    VGQ_BOX,
    VGQ_ELLIPSOID,
    VGQ_CYLINDER,
    VGQ_RENDER_SHAPE_KINDS
} vgq_render_shape_kind;

typedef enum {
    VGQ_FLAT,    // one colour
    VGQ_CLOUD,   // soft noise between two colours
    VGQ_MARBLE,  // soft bands bent by noise
    VGQ_CHECKER, // hard squares, each with its own tint
    VGQ_STRIPES, // hard bands of three colours
    VGQ_BRICKS,  // rows of bricks with mortar
    VGQ_CELLS,   // Voronoi cells
    VGQ_DOTS,    // discs of random size
    VGQ_GLYPHS,  // random 4x4 bit patterns: many corners
    VGQ_RENDER_TEXTURE_KINDS
} vgq_render_texture_kind;

typedef struct {
    float kind;        // vgq_render_shape_kind
    float texture;     // index of its texture; a room uses six in a row, one for each face
    float to_local[9]; // rotation, row-major: local = to_local * (world - centre)
    float centre[3];   // world
    float half[3];     // half sizes along the local axes; a cylinder's axis is local y
} vgq_render_shape;

typedef struct {
    float kind;      // vgq_render_texture_kind
    float seed;      // an integer below 2^24
    float frame[2];  // cosine and sine of the pattern's rotation in the face
    float rate[2];   // pattern cells a unit of length
    float colour[9]; // three linear RGB colours
    float grain;     // amplitude of the fine noise on top, 0 to 1
} vgq_render_texture;

typedef struct {
    float is_point; // 0: position is the direction towards the light (unit length); 1: position is
                    // a place
    float position[3]; // world
    float colour[3];   // linear RGB
    float falloff;     // point lights: intensity / (1 + falloff * distance^2)
} vgq_render_light;

typedef struct {
    float rotation[9]; // camera from world, row-major
    float centre[3];   // camera centre in the world
    float focal[2];    // fx, fy in pixels
} vgq_render_camera;

typedef struct {
    const vgq_render_shape *shapes; // shapes[0] is the room; the cameras are inside it
    const vgq_render_texture *textures;
    const vgq_render_light *lights;
    size_t n_shapes, n_textures, n_lights;
    float ambient[3];
} vgq_render_scene;

// Whether the scene can be rendered: 1 to VGQ_RENDER_SHAPES shapes of known kinds with a room first
// and positive sizes, texture indices in range.  Returns NULL, or one sentence that says what is
// wrong.
const char *vgq_render_check(const vgq_render_scene *scene);

// Renders rows first..last-1 of one picture into rgb (height, width, 3; gamma 2), depth (height,
// width; camera z of the pixel's centre ray) and points (height, width, 3; world).  With antialias
// the colour is the mean of two to four rays, else the centre ray's.
void vgq_render_rows(const vgq_render_scene *scene, const vgq_render_camera *camera, size_t width,
                     size_t height, size_t first, size_t last, int antialias, uint8_t *rgb,
                     float *depth, float *points);

// Mean length of n points (n, 3), summed in order in double; 0 for n = 0.
double vgq_mean_norm(size_t n, const float *points);

#endif
