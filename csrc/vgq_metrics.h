/* part of vgq.h, merged at the end */
