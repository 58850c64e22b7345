/* Intel's matrix unit in plain C: eight tiles of memory for each thread, and what the instructions do to them.
 *
 * "Intel 64 and IA-32 Architectures Software Developer's Manual", volume 2. What would be an invalid instruction or a
 * general protection fault ends the process here too.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TILES = 8, ROWS = 16, ROW_BYTES = 64 };

static __thread struct {
    int configured;
    int rows[TILES], row_bytes[TILES];
    uint8_t bytes[TILES][ROWS][ROW_BYTES];
} unit;

static void require(int condition, const char *what) {
    if (!condition) {
        fprintf(stderr, "emulated matrix unit: %s\n", what);
        abort();
    }
}

static void require_tile(int8_t tile) {
    require(unit.configured, "an instruction on tiles before ldtilecfg or after tilerelease");
    require(0 <= tile && tile < TILES, "there is no such tile");
    require(unit.rows[tile] > 0, "the tile has no rows");
}

int32_t tersor_emulated_ldtilecfg(const uint8_t *settings) {
    require(settings[0] == 1, "the palette must be 1");
    memset(&unit, 0, sizeof unit);
    for (int tile = 0; tile < TILES; tile++) {
        unit.row_bytes[tile] = settings[16 + 2 * tile] + 256 * settings[17 + 2 * tile];
        unit.rows[tile] = settings[48 + tile];
        require(unit.row_bytes[tile] <= ROW_BYTES && unit.rows[tile] <= ROWS, "tiles have 16 rows of 64 bytes");
    }
    unit.configured = 1;
    return 0;
}

int32_t tersor_emulated_tilerelease(void) {
    memset(&unit, 0, sizeof unit);
    return 0;
}

int32_t tersor_emulated_tilezero(int8_t tile) {
    require_tile(tile);
    memset(unit.bytes[tile], 0, sizeof unit.bytes[tile]);
    return 0;
}

int32_t tersor_emulated_tileloadd64(int8_t tile, const uint8_t *memory, int64_t stride) {
    require_tile(tile);
    memset(unit.bytes[tile], 0, sizeof unit.bytes[tile]);
    for (int row = 0; row < unit.rows[tile]; row++)
        memcpy(unit.bytes[tile][row], memory + row * stride, unit.row_bytes[tile]);
    return 0;
}

int32_t tersor_emulated_tilestored64(int8_t tile, uint8_t *memory, int64_t stride) {
    require_tile(tile);
    for (int row = 0; row < unit.rows[tile]; row++)
        memcpy(memory + row * stride, unit.bytes[tile][row], unit.row_bytes[tile]);
    return 0;
}

static void require_product(int8_t sums, int8_t left, int8_t right) {
    require_tile(sums), require_tile(left), require_tile(right);
    require(sums != left && sums != right && left != right, "a product needs three different tiles");
    require(unit.rows[sums] == unit.rows[left], "sums and left operand must have as many rows");
    require(unit.row_bytes[sums] == unit.row_bytes[right], "sums and right operand must have as many columns");
    require(unit.row_bytes[left] == 4 * unit.rows[right], "rows of the left operand must fit the right one's columns");
}

/* Numbers too small to be normal count as zero, in operands and in results. */
static float flushed(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    bits = bits & 0x7f800000 ? bits : bits & 0x80000000;
    memcpy(&value, &bits, 4);
    return value;
}

static float number(const uint8_t *bfloat16) {
    uint32_t bits = (uint32_t)bfloat16[0] << 16 | (uint32_t)bfloat16[1] << 24;
    float value;
    memcpy(&value, &bits, 4);
    return flushed(value);
}

int32_t tersor_emulated_tdpbf16ps(int8_t sums, int8_t left, int8_t right) {
    require_product(sums, left, right);
    for (int row = 0; row < unit.rows[sums]; row++) {
        float even[ROWS] = {0}, odd[ROWS] = {0}, total;
        for (int step = 0; step < unit.rows[right]; step++) {
            const float first = number(&unit.bytes[left][row][4 * step]);
            const float second = number(&unit.bytes[left][row][4 * step + 2]);
            for (int column = 0; column < unit.row_bytes[sums] / 4; column++) {
                even[column] = flushed(even[column] + first * number(&unit.bytes[right][step][4 * column]));
                odd[column] = flushed(odd[column] + second * number(&unit.bytes[right][step][4 * column + 2]));
            }
        }
        for (int column = 0; column < unit.row_bytes[sums] / 4; column++) {
            memcpy(&total, &unit.bytes[sums][row][4 * column], 4);
            total = flushed(flushed(total) + flushed(even[column] + odd[column]));
            memcpy(&unit.bytes[sums][row][4 * column], &total, 4);
        }
    }
    return 0;
}

/* Sums of four products of bytes; those on the left are of type LEFT, those on the right have signs. */
#define INTEGER_PRODUCT(NAME, LEFT)                                                                                    \
    int32_t NAME(int8_t sums, int8_t left, int8_t right) {                                                             \
        require_product(sums, left, right);                                                                            \
        for (int row = 0; row < unit.rows[sums]; row++)                                                                \
            for (int step = 0; step < unit.rows[right]; step++)                                                        \
                for (int column = 0; column < unit.row_bytes[sums] / 4; column++) {                                    \
                    int32_t total;                                                                                     \
                    memcpy(&total, &unit.bytes[sums][row][4 * column], 4);                                             \
                    for (int byte = 0; byte < 4; byte++)                                                               \
                        total = (int32_t)((uint32_t)total + (uint32_t)((LEFT)unit.bytes[left][row][4 * step + byte] *  \
                                                                       (int8_t)unit.bytes[right][step][4 * column + byte])); \
                    memcpy(&unit.bytes[sums][row][4 * column], &total, 4);                                             \
                }                                                                                                      \
        return 0;                                                                                                      \
    }

INTEGER_PRODUCT(tersor_emulated_tdpbusd, uint8_t)
INTEGER_PRODUCT(tersor_emulated_tdpbssd, int8_t)
