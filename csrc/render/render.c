// SPDX-License-Identifier: Apache-2.0
// The ray caster of render.h.  Each shape is mapped to its unit form (cube, sphere, cylinder) once
// a picture, so that a ray test works on numbers near 1; a bounding rectangle on the image lets
// most pixels test one or two shapes only.
#include "texture.h"

// ---- rays: a shape as one camera sees it

typedef struct {
    float from_pixel[9];            // unit-form direction = from_pixel * (x, y, 1)
    vec origin;                     // camera centre in unit form
    float left, right, top, bottom; // bounding rectangle on the plane z = 1
    vgq_render_shape_kind kind;
} view;

typedef struct {
    float t;         // depth, because ray directions have z = 1
    int shape, axis; // axis: the face's normal is along +-axis of the unit form; 3: a curved side
} hit;

static void see(const vgq_render_shape *shape, const vgq_render_camera *camera, view *out)
{
    const float *r = camera->rotation, *m = shape->to_local;
    const float offset[3] = {camera->centre[0] - shape->centre[0],
                             camera->centre[1] - shape->centre[1],
                             camera->centre[2] - shape->centre[2]};
    float origin[3];
    for (int i = 0; i < 3; i++) {
        const float inverse = 1.0f / shape->half[i];
        for (int j = 0; j < 3; j++) // world from camera is the transpose of r
            out->from_pixel[3 * i + j] =
                (m[3 * i] * r[3 * j] + m[3 * i + 1] * r[3 * j + 1] + m[3 * i + 2] * r[3 * j + 2]) *
                inverse;
        origin[i] =
            (m[3 * i] * offset[0] + m[3 * i + 1] * offset[1] + m[3 * i + 2] * offset[2]) * inverse;
    }
    out->origin = load(origin);
    out->kind = (vgq_render_shape_kind)shape->kind;

    const vec half = load(shape->half);
    const float radius = sqrtf(dot(half, half));
    const float x = -(r[0] * offset[0] + r[1] * offset[1] + r[2] * offset[2]);
    const float y = -(r[3] * offset[0] + r[4] * offset[1] + r[5] * offset[2]);
    const float z = -(r[6] * offset[0] + r[7] * offset[1] + r[8] * offset[2]);
    const float near = z - radius, far = z + radius;
    if (far <= 0.0f) { // behind the camera: an empty rectangle
        out->left = out->top = 1.0f;
        out->right = out->bottom = -1.0f;
    } else if (near <= 1e-3f) {
        out->left = out->top = -1e9f;
        out->right = out->bottom = 1e9f;
    } else {
        out->left = (x - radius) / (x - radius < 0.0f ? near : far);
        out->right = (x + radius) / (x + radius > 0.0f ? near : far);
        out->top = (y - radius) / (y - radius < 0.0f ? near : far);
        out->bottom = (y + radius) / (y + radius > 0.0f ? near : far);
    }
}

static vec direction(const view *v, float x, float y)
{
    const float *m = v->from_pixel;
    return (vec){m[0] * x + m[1] * y + m[2], m[3] * x + m[4] * y + m[5],
                 m[6] * x + m[7] * y + m[8]};
}

// Where the ray leaves (room) or enters (box) the unit cube; 0 if never in front of the camera.
static float meet_cube(vec o, vec d, int leaving, int *axis)
{
    const float origin[3] = {o.x, o.y, o.z}, along[3] = {d.x, d.y, d.z};
    float enter = -1e30f, leave = 1e30f;
    int enter_axis = 0, leave_axis = 0;
    for (int i = 0; i < 3; i++) {
        // a ray parallel to a face pair: a tiny slope in its place keeps all numbers finite
        const float slope = absolute(along[i]) < 1e-12f ? 1e-12f : along[i];
        const float inverse = 1.0f / slope;
        const float a = (-1.0f - origin[i]) * inverse, b = (1.0f - origin[i]) * inverse;
        const float first = a < b ? a : b, second = a < b ? b : a;
        if (first > enter) {
            enter = first;
            enter_axis = i;
        }
        if (second < leave) {
            leave = second;
            leave_axis = i;
        }
    }
    *axis = leaving ? leave_axis : enter_axis;
    if (leaving)
        return leave > 0.0f ? leave : 0.0f;
    return enter > 0.0f && enter < leave ? enter : 0.0f;
}

static float meet_sphere(vec o, vec d, int *axis)
{
    const float a = dot(d, d), b = dot(o, d), c = dot(o, o) - 1.0f;
    const float root = b * b - a * c;
    *axis = 3;
    if (root <= 0.0f || b >= 0.0f)
        return 0.0f;
    const float t = (-b - sqrtf(root)) / a;
    return t > 0.0f ? t : 0.0f;
}

static float meet_cylinder(vec o, vec d, int *axis)
{
    float best = 0.0f;
    const float a = d.x * d.x + d.z * d.z, b = o.x * d.x + o.z * d.z;
    const float c = o.x * o.x + o.z * o.z - 1.0f;
    const float root = b * b - a * c;
    if (root > 0.0f && a > 0.0f) {
        const float t = (-b - sqrtf(root)) / a;
        if (t > 0.0f && absolute(o.y + t * d.y) <= 1.0f) {
            *axis = 3;
            best = t;
        }
    }
    if (d.y != 0.0f) { // the cap that faces the ray
        const float t = ((d.y > 0.0f ? -1.0f : 1.0f) - o.y) / d.y;
        const float x = o.x + t * d.x, z = o.z + t * d.z;
        if (t > 0.0f && x * x + z * z <= 1.0f && (best == 0.0f || t < best)) {
            *axis = 1;
            best = t;
        }
    }
    return best;
}

// The nearest of the listed shapes along pixel ray (x, y, 1); shape 0, the room, stops every ray.
static hit trace(const view *views, const int *list, int n, float x, float y)
{
    hit nearest = {0.0f, 0, 0};
    nearest.t = meet_cube(views[0].origin, direction(&views[0], x, y), 1, &nearest.axis);
    for (int i = 0; i < n; i++) {
        const view *v = &views[list[i]];
        if (x < v->left || x > v->right || y < v->top || y > v->bottom)
            continue;
        const vec d = direction(v, x, y);
        int axis = 0;
        const float t = v->kind == VGQ_BOX         ? meet_cube(v->origin, d, 0, &axis)
                        : v->kind == VGQ_ELLIPSOID ? meet_sphere(v->origin, d, &axis)
                                                   : meet_cylinder(v->origin, d, &axis);
        if (t > 0.0f && t < nearest.t)
            nearest = (hit){t, list[i], axis};
    }
    return nearest;
}

// ---- shading

// An angle-like coordinate in [0, 4) around the circle, without an arc tangent: the place on a
// diamond.
static float diamond_angle(float x, float z)
{
    const float r = z / (absolute(x) + absolute(z) + 1e-20f);
    return x >= 0.0f ? (z >= 0.0f ? r : 4.0f + r) : 2.0f - r;
}

static vec shade(const vgq_render_scene *scene, const vgq_render_camera *camera, const view *views,
                 hit h, float x, float y)
{
    const vgq_render_shape *shape = &scene->shapes[h.shape];
    const view *v = &views[h.shape];
    const vec local = add(v->origin, scaled(direction(v, x, y), h.t));
    const float p[3] = {local.x, local.y, local.z};
    float n[3] = {0.0f, 0.0f, 0.0f};
    float tu, tv;
    uint32_t face;

    if (h.axis == 3 && v->kind == VGQ_CYLINDER) {
        n[0] = p[0] / shape->half[0];
        n[2] = p[2] / shape->half[2];
        tu = diamond_angle(p[0], p[2]) * shape->half[0] * 1.5f;
        tv = p[1] * shape->half[1];
        face = 6;
    } else { // a flat face, or a sphere seen as a cube map
        int axis = h.axis;
        if (axis == 3) {
            for (int i = 0; i < 3; i++)
                n[i] = p[i] / shape->half[i];
            axis = absolute(p[0]) > absolute(p[1]) ? 0 : 1;
            axis = absolute(p[2]) > absolute(p[axis]) ? 2 : axis;
        } else {
            n[axis] = (p[axis] > 0.0f) == (v->kind != VGQ_ROOM) ? 1.0f : -1.0f;
        }
        const int b = (axis + 1) % 3, c = (axis + 2) % 3;
        const float spread = h.axis == 3 ? 1.0f / absolute(p[axis]) : 1.0f;
        tu = p[b] * shape->half[b] * spread;
        tv = p[c] * shape->half[c] * spread;
        face = 2u * (uint32_t)axis + (p[axis] > 0.0f);
    }
    const size_t room_face = v->kind == VGQ_ROOM ? face : 0;
    const vgq_render_texture *texture = &scene->textures[(size_t)shape->texture + room_face];
    const vec albedo = vgq_render_colour(texture, tu, tv, face);

    const float *m = shape->to_local; // its transpose turns the normal into the world
    const vec normal =
        unit((vec){m[0] * n[0] + m[3] * n[1] + m[6] * n[2], m[1] * n[0] + m[4] * n[1] + m[7] * n[2],
                   m[2] * n[0] + m[5] * n[1] + m[8] * n[2]});
    const float *r = camera->rotation;
    const vec ray = {r[0] * x + r[3] * y + r[6], r[1] * x + r[4] * y + r[7],
                     r[2] * x + r[5] * y + r[8]};
    const vec place = add(load(camera->centre), scaled(ray, h.t));
    vec light = load(scene->ambient);
    for (size_t i = 0; i < scene->n_lights; i++) {
        const vgq_render_light *l = &scene->lights[i];
        vec towards = load(l->position);
        float strength = 1.0f;
        if (l->is_point != 0.0f) {
            towards = add(towards, scaled(place, -1.0f));
            const float d2 = dot(towards, towards) + 1e-6f;
            towards = scaled(towards, 1.0f / sqrtf(d2));
            strength = 1.0f / (1.0f + l->falloff * d2);
        }
        const float lambert = dot(normal, towards);
        if (lambert > 0.0f)
            light = add(light, scaled(load(l->colour), lambert * strength));
    }
    return mul(albedo, light);
}

static int alike(vec a, vec b)
{
    const vec d = add(a, scaled(b, -1.0f));
    return dot(d, d) < 0.002f;
}

static uint8_t to_byte(float linear) { return (uint8_t)(sqrtf(clamp01(linear)) * 255.0f + 0.5f); }

/* A kind travels as a float; one between two kinds would become the lower one when it is read. */
static int is_kind(float kind, int kinds)
{
    return kind >= 0.0f && kind < (float)kinds && kind == (float)(int)kind;
}

const char *vgq_render_check(const vgq_render_scene *scene)
{
    if (scene->n_shapes < 1 || scene->n_shapes > VGQ_RENDER_SHAPES)
        return "a scene holds 1 to 96 shapes";
    for (size_t i = 0; i < scene->n_shapes; i++) {
        const vgq_render_shape *s = &scene->shapes[i];
        if (!is_kind(s->kind, VGQ_RENDER_SHAPE_KINDS) || (s->kind == 0.0f) != (i == 0))
            return "shape 0 is a room, all others are boxes, ellipsoids or cylinders";
        const double last = (double)s->texture + (i == 0 ? 5 : 0);
        if (!(s->texture >= 0.0f && last < (double)scene->n_textures))
            return "a shape's texture is not in the table";
        if (!(s->half[0] > 0.0f && s->half[1] > 0.0f && s->half[2] > 0.0f))
            return "a shape's half sizes must be positive";
    }
    for (size_t i = 0; i < scene->n_textures; i++) {
        const vgq_render_texture *t = &scene->textures[i];
        if (!is_kind(t->kind, VGQ_RENDER_TEXTURE_KINDS))
            return "a texture is of no known kind";
        if (!(t->seed >= 0.0f && t->seed < 0x1p24f))
            return "a texture's seed must be an integer below 2^24";
    }
    return NULL;
}

void vgq_render_rows(const vgq_render_scene *scene, const vgq_render_camera *camera, size_t width,
                     size_t height, size_t first, size_t last, int antialias, uint8_t *rgb,
                     float *depth, float *points)
{
    // a rotated grid: four rays with four different rows and columns
    static const float grid[4][2] = {
        {-0.375f, -0.125f}, {0.375f, 0.125f}, {0.125f, -0.375f}, {-0.125f, 0.375f}};
    view views[VGQ_RENDER_SHAPES];
    int list[VGQ_RENDER_SHAPES];
    for (size_t i = 0; i < scene->n_shapes; i++)
        see(&scene->shapes[i], camera, &views[i]);

    const float step_x = 1.0f / camera->focal[0], step_y = 1.0f / camera->focal[1];
    const float *r = camera->rotation;
    for (size_t row = first; row < last; row++) {
        const float y = ((float)row - 0.5f * (float)height) * step_y;
        int n = 0;
        for (size_t i = 1; i < scene->n_shapes; i++)
            if (y + step_y >= views[i].top && y - step_y <= views[i].bottom)
                list[n++] = (int)i;
        for (size_t column = 0; column < width; column++) {
            const size_t pixel = row * width + column;
            const float x = ((float)column - 0.5f * (float)width) * step_x;
            const hit centre = trace(views, list, n, x, y);
            vec colour = {0.0f, 0.0f, 0.0f};
            if (antialias) {
                // two opposite rays first; the other two only where these differ: edges, fine
                // texture
                vec seen[2];
                int s = 0;
                for (; s < 4; s++) {
                    if (s == 2 && alike(seen[0], seen[1]))
                        break;
                    const float sx = x + grid[s][0] * step_x, sy = y + grid[s][1] * step_y;
                    seen[s & 1] =
                        shade(scene, camera, views, trace(views, list, n, sx, sy), sx, sy);
                    colour = add(colour, seen[s & 1]);
                }
                colour = scaled(colour, 1.0f / (float)s);
            } else {
                colour = shade(scene, camera, views, centre, x, y);
            }
            rgb[3 * pixel] = to_byte(colour.x);
            rgb[3 * pixel + 1] = to_byte(colour.y);
            rgb[3 * pixel + 2] = to_byte(colour.z);
            depth[pixel] = centre.t;
            for (int i = 0; i < 3; i++)
                points[3 * pixel + (size_t)i] =
                    camera->centre[i] + centre.t * (r[i] * x + r[3 + i] * y + r[6 + i]);
        }
    }
}

double vgq_mean_norm(size_t n, const float *points)
{
    double sum = 0.0;
    for (size_t i = 0; i < n; i++) {
        const double x = (double)points[3 * i], y = (double)points[3 * i + 1],
                     z = (double)points[3 * i + 2];
        sum += sqrt(x * x + y * y + z * z);
    }
    return n ? sum / (double)n : 0.0;
}
