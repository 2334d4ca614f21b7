/* ---- linear (linear.c) ------------------------------------------------------------------------
 */

/* How the codes of a weight matrix scale: w = scale * factor * (code - zero). */
typedef enum vgq_scales {
    VGQ_PER_ROW,   /* I8: scale[n], zero[n] or none; per tensor repeats one value */
    VGQ_TWO_LEVEL, /* I4: scale[n], factor[n][groups], zero[n][groups] or none */
    VGQ_PER_GROUP, /* I4: scale[n][groups], zero[n][groups] or none */
    VGQ_SCALES
} vgq_scales;

/* A weight matrix of n outputs and k inputs, as a file holds it: q row-major, vgq_row_nbytes a row.
 */
typedef struct vgq_weight {
    vgq_format format;
    vgq_scales scales;
    size_t n, k, group; /* group: multiple of 8, or k and more (then it is k) */
    int asymmetric;     /* whether zero is there */
    uint8_t *q;
    float *scale;
    uint8_t *factor; /* VGQ_TWO_LEVEL only */
    int8_t *zero;
} vgq_weight;

/* Longest row for which every sum of products fits 32 bits. */
#define VGQ_DEEPEST 65536

/* Bytes of the packed form; 0 for a weight that cannot be packed. Pointers are not looked at. */
size_t vgq_packed_nbytes(const vgq_weight *weight);
/* Lay the weight out for the kernels. VGQ_EDEPTH: k above VGQ_DEEPEST. */
vgq_status vgq_pack(const vgq_weight *weight, void *packed, size_t nbytes);
/* What packed bytes hold: all of *weight but its pointers. VGQ_EPACKED: not packed, or cut short.
 */
vgq_status vgq_packed_weight(const void *packed, size_t nbytes, vgq_weight *weight);
/* The inverse of pack: writes through weight's pointers, which must be there as packed_weight says.
 */
vgq_status vgq_unpack(const void *packed, size_t nbytes, const vgq_weight *weight);

/* What the activations are while they are multiplied. */
typedef enum vgq_activations {
    VGQ_FLOAT_ACTIVATIONS, /* floats; the product has a fixed order per instruction set */
    VGQ_INT8_ACTIVATIONS,  /* INT8 per token, chosen from each row; exact sums, the same bits
                              everywhere */
    VGQ_ACTIVATIONS
} vgq_activations;

/* One call's operands: y[m][n] = x[m][k] w[n][k]^T + bias[n] (bias NULL: none). */
typedef struct vgq_linear_call {
    vgq_activations activations;
    size_t m;
    vgq_dtype x_dtype, y_dtype;
    const void *x;
    const float *bias;
    void *y;
} vgq_linear_call;

/* Bytes of scratch that vgq_linear wants for that call, at the present thread count. */
size_t vgq_linear_nbytes(const vgq_weight *weight, const vgq_linear_call *call);
/* A row of x with a NaN or an infinity gives a row of NaN with INT8 activations. */
vgq_status vgq_linear(const void *packed, size_t nbytes, const vgq_linear_call *call, void *scratch,
                      size_t scratch_nbytes);
