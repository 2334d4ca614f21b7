/* SPDX-License-Identifier: Apache-2.0
 * The rows of a tile one by one: X is a macro of a row's number. Each sum of a tile is a variable
 * of its own, a<row><column block>, because gcc keeps an array of them in memory. */
#ifndef VGQ_TILES_H
#define VGQ_TILES_H

#define EACH_1(X) X(0)
#define EACH_2(X) EACH_1(X) X(1)
#define EACH_3(X) EACH_2(X) X(2)
#define EACH_4(X) EACH_3(X) X(3)
#define EACH_5(X) EACH_4(X) X(4)
#define EACH_6(X) EACH_5(X) X(5)
#define EACH_8(X) EACH_6(X) X(6) X(7)

/* TILE(n, EACH_n) of every height. */
#define EACH_HEIGHT(TILE) \
    TILE(1, EACH_1)       \
    TILE(2, EACH_2)       \
    TILE(3, EACH_3)       \
    TILE(4, EACH_4)       \
    TILE(5, EACH_5)       \
    TILE(6, EACH_6)

#endif
