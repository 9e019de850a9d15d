//! AMX: products of whole tiles, and AVX-512 for everything else.
//!
//! A tile register holds up to 16 rows of 64 bytes. What lies in our panels is what the
//! instructions want: 16 steps of a panel are one tile, each with a word of one row's inputs for
//! each of 16 outputs (Intel's Software Developer's Manual, TDPBF16PS and TDPBSUD).
//!
//! How many rows and bytes the registers have is set by LDTILECFG, which clears them. A thread
//! remembers what it has set until [`leave`].

use std::{
    arch::{asm, x86_64::__cpuid_count},
    cell::Cell,
    sync::OnceLock,
};

use super::{
    super::attend::{Packed, Products, SCORE_STRIDE, Values, attend},
    avx512::{self, add_group},
    *,
};

/// Rows of a tile register.
const TILE_ROWS: usize = 16;
/// Steps of a panel in a full tile register.
const TILE_STEPS: usize = 16;

const SHAPES: &[Shape] = &[
    Shape {
        rows: TILE_ROWS,
        panels: 4,
    },
    Shape {
        rows: 2 * TILE_ROWS,
        panels: 2,
    },
];
/// Few rows are multiplied with AVX-512, which gives the same bits.
const QUANTIZED_SHAPES: &[Shape] = &[
    Shape { rows: 1, panels: 8 },
    Shape { rows: 2, panels: 4 },
    Shape {
        rows: FEW,
        panels: 2,
    },
    Shape {
        rows: TILE_ROWS,
        panels: 2,
    },
];
const FEW: usize = 6;

compiled_for_avx512! {
    attend_bf16(args: &AttendArgs<'_>) = attend::<Tiles>;
    tile_bf16(args: &Tile) = multiply_bf16;
    tile_int8(args: &Tile) = multiply_quantized::<Int8>;
    tile_int4(args: &Tile) = multiply_quantized::<Int4>;
}

/// The set.
pub(in super::super) fn ops() -> Ops {
    let base = avx512::ops();
    let quantized = |tile| Multiply {
        rows: RowKind::Q8,
        tile,
        shapes: QUANTIZED_SHAPES,
    };
    Ops {
        bf16: Multiply {
            rows: RowKind::Bf16,
            tile: tile_bf16,
            shapes: SHAPES,
        },
        int8: quantized(tile_int8),
        int4: quantized(tile_int4),
        attend_bf16,
        leave,
        ..base
    }
}

/// Whether the processor multiplies tiles of bf16 and of 8 bits, and the kernel lets this process
/// do so. The first call asks the kernel for it.
pub(in super::super) fn usable() -> bool {
    static USABLE: OnceLock<bool> = OnceLock::new();
    *USABLE.get_or_init(|| (has_tiles() && permitted()) || emulated())
}

/// Leaf 7 of CPUID: AMX-BF16, AMX-TILE, AMX-INT8.
fn has_tiles() -> bool {
    const WANTED: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    __cpuid_count(0, 0).eax >= 7 && __cpuid_count(7, 0).edx & WANTED == WANTED
}

/// The kernel saves a thread's tiles only for a process that asked for them. It refuses where it
/// knows nothing of them, or a seccomp profile forbids the question.
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_int = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_ulong = 18;
    // SAFETY: no pointer goes there.
    unsafe {
        libc::syscall(
            libc::SYS_arch_prctl,
            ARCH_REQ_XCOMP_PERM,
            XFEATURE_XTILEDATA,
        ) == 0
    }
}

/// Unit tests run on any processor with AVX-512.
#[cfg(test)]
fn emulated() -> bool {
    super::super::tests::amx::emulate();
    true
}

#[cfg(not(test))]
fn emulated() -> bool {
    false
}

thread_local! {
    /// Rows and steps that the registers are set for, 0 for none.
    static CONFIGURED: Cell<(u8, u8)> = const { Cell::new((0, 0)) };
}

/// Operand of LDTILECFG.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes of a row of each register.
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Sums, registers 0 to 3: of rows 0..16 by panels 0, 1, 2, 3, or of rows 0..16 and 16..32 by
/// panels 0 and 1 (0, 1 and 2, 3). Rows of activations: 4 and 5. Weights: 6 and 7.
///
/// # Safety
/// The processor has AMX.
unsafe fn configure(rows: usize, steps: usize) {
    debug_assert!((1..=2 * TILE_ROWS).contains(&rows) && (1..=TILE_STEPS).contains(&steps));
    let wanted = (rows as u8, steps as u8);
    if CONFIGURED.get() == wanted {
        return;
    }
    let mut config = Config {
        palette: 1,
        start_row: 0,
        reserved: [0; 14],
        row_bytes: [0; 16],
        rows: [0; 16],
    };
    let first = rows.min(TILE_ROWS) as u8;
    let second = wanted.0 - first;
    let mut set = |register: usize, rows: u8, row_bytes: usize| {
        if rows > 0 {
            config.rows[register] = rows;
            config.row_bytes[register] = row_bytes as u16;
        }
    };
    for register in 0..4 {
        let rows = if second > 0 && register >= 2 {
            second
        } else {
            first
        };
        set(register, rows, STEP_BYTES);
    }
    set(4, first, steps * 4);
    set(5, second, steps * 4);
    set(6, wanted.1, STEP_BYTES);
    set(7, wanted.1, STEP_BYTES);
    // SAFETY: the operand is as the manual wants it.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly)) };
    CONFIGURED.set(wanted);
}

/// Clears the registers, so that the kernel need not save them with the thread.
fn leave() {
    if CONFIGURED.get() != (0, 0) {
        // SAFETY: they were set, so the processor has them.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
        CONFIGURED.set((0, 0));
    }
}

// The compiler uses no tile registers of its own, so what one of these leaves in a register is
// there for the next. SAFETY of all: the registers are configured, the memory is there.

#[inline(always)]
unsafe fn clear<const T: usize>() {
    // SAFETY: see above.
    unsafe { asm!("tilezero tmm{}", const T, options(nostack, nomem, preserves_flags)) };
}

#[inline(always)]
unsafe fn load<const T: usize>(at: *const u8, row_bytes: usize) {
    // SAFETY: see above.
    unsafe {
        asm!("tileloadd tmm{}, [{} + {}*1]", const T, in(reg) at, in(reg) row_bytes,
            options(nostack, readonly, preserves_flags));
    }
}

#[inline(always)]
unsafe fn store<const T: usize>(at: *mut u8, row_bytes: usize) {
    // SAFETY: see above.
    unsafe {
        asm!("tilestored [{} + {}*1], tmm{}", in(reg) at, in(reg) row_bytes, const T,
            options(nostack, preserves_flags));
    }
}

/// `sums += rows * weights` of bf16.
#[inline(always)]
unsafe fn add_bf16<const SUMS: usize, const ROWS: usize, const WEIGHTS: usize>() {
    // SAFETY: see above.
    unsafe {
        asm!("tdpbf16ps tmm{}, tmm{}, tmm{}", const SUMS, const ROWS, const WEIGHTS,
            options(nostack, nomem, preserves_flags));
    }
}

/// `sums += rows * weights` of signed and of unsigned bytes.
#[inline(always)]
unsafe fn add_bytes<const SUMS: usize, const ROWS: usize, const WEIGHTS: usize>() {
    // SAFETY: see above.
    unsafe {
        asm!("tdpbsud tmm{}, tmm{}, tmm{}", const SUMS, const ROWS, const WEIGHTS,
            options(nostack, nomem, preserves_flags));
    }
}

/// Where the sums of a product are.
#[derive(Clone, Copy)]
struct Sums {
    out: *mut f32,
    /// From one row to the next, in values.
    stride: usize,
    /// From one panel to the next, in values.
    panel: usize,
    /// Whether there are some already, to be added to.
    begun: bool,
}

/// `sums (+)= rows * weights` for `N` panels and, where `TWO`, two registers of rows; `count` tiles
/// of inputs, which lie at `rows(k)` and `panels(k, j)`.
///
/// # Safety
/// The registers are configured for the rows and for the steps of a tile, and all of it lies in
/// memory.
#[inline(always)]
unsafe fn pass<const TWO: bool, const N: usize>(
    count: usize,
    rows: impl Fn(usize) -> *const u8,
    row_bytes: usize,
    panels: impl Fn(usize, usize) -> *const u8,
    ahead: usize,
    sums: Sums,
) {
    let out = |half: usize, j: usize| {
        let at = half * TILE_ROWS * sums.stride + j * sums.panel;
        sums.out.wrapping_add(at).cast::<u8>()
    };
    let stride = 4 * sums.stride;
    // Register, half of the rows, panel.
    macro_rules! each_sum {
        ($do:ident) => {
            if TWO {
                $do!(0, 0, 0);
                $do!(2, 1, 0);
                if N > 1 {
                    $do!(1, 0, 1);
                    $do!(3, 1, 1);
                }
            } else {
                $do!(0, 0, 0);
                if N > 1 {
                    $do!(1, 0, 1);
                }
                if N > 2 {
                    $do!(2, 0, 2);
                }
                if N > 3 {
                    $do!(3, 0, 3);
                }
            }
        };
    }
    // SAFETY: the caller's promise.
    unsafe {
        macro_rules! begin {
            ($T:literal, $half:literal, $j:literal) => {
                if sums.begun {
                    load::<$T>(out($half, $j), stride);
                } else {
                    clear::<$T>();
                }
            };
        }
        each_sum!(begin);
        for k in 0..count {
            let first = rows(k);
            load::<4>(first, row_bytes);
            if TWO {
                load::<5>(first.add(TILE_ROWS * row_bytes), row_bytes);
            }
            macro_rules! panel {
                ($j:literal, $W:literal, $S:literal) => {
                    let panel = panels(k, $j);
                    load::<$W>(panel, STEP_BYTES);
                    if ahead > 0 {
                        for line in 0..TILE_STEPS {
                            let line = panel.wrapping_add(ahead + line * STEP_BYTES);
                            _mm_prefetch::<_MM_HINT_T1>(line.cast());
                        }
                    }
                    add_bf16::<$S, 4, $W>();
                };
            }
            panel!(0, 6, 0);
            if TWO {
                add_bf16::<2, 5, 6>();
            }
            if N > 1 {
                panel!(1, 7, 1);
                if TWO {
                    add_bf16::<3, 5, 7>();
                }
            }
            if N > 2 {
                panel!(2, 6, 2);
            }
            if N > 3 {
                panel!(3, 7, 3);
            }
        }
        macro_rules! end {
            ($T:literal, $half:literal, $j:literal) => {
                store::<$T>(out($half, $j), stride);
            };
        }
        each_sum!(end);
    }
}

/// `m` rows times `N` panels of `steps` steps.
///
/// # Safety
/// All of it lies in memory, and the processor has AMX.
#[inline(always)]
unsafe fn multiply_panels<const TWO: bool, const N: usize>(
    panels: [*const u8; N],
    rows: Packed,
    steps: usize,
    ahead: usize,
    mut sums: Sums,
) {
    let (whole, rest) = (steps / TILE_STEPS, steps % TILE_STEPS);
    for (from, count, steps) in [(0, whole, TILE_STEPS), (whole, 1, rest)] {
        if count == 0 || steps == 0 {
            continue;
        }
        // SAFETY: the caller's promise.
        unsafe {
            configure(rows.count, steps);
            pass::<TWO, N>(
                count,
                |k| rows.at.add((from + k) * TILE_STEPS * 4),
                rows.bytes,
                |k, j| panels[j].add((from + k) * TILE_STEPS * STEP_BYTES),
                ahead,
                sums,
            );
        }
        sums.begun = true;
    }
}

#[inline(always)]
unsafe fn multiply_bf16(tile: &Tile) {
    let rows = Packed {
        at: tile.rows,
        bytes: tile.row_bytes,
        count: tile.m,
    };
    let sums = Sums {
        out: tile.out,
        stride: tile.out_stride,
        panel: tile.out_panel,
        begun: tile.begun,
    };
    macro_rules! go {
        ($TWO:literal, $N:literal) => {{
            let panels = panels::<$N>(tile);
            multiply_panels::<$TWO, $N>(panels, rows, tile.steps, tile.ahead, sums)
        }};
    }
    // SAFETY: the caller's promise.
    unsafe {
        match (tile.m > TILE_ROWS, tile.n) {
            (false, 1) => go!(false, 1),
            (false, 2) => go!(false, 2),
            (false, 3) => go!(false, 3),
            (false, _) => go!(false, 4),
            (true, 1) => go!(true, 1),
            (true, _) => go!(true, 2),
        }
    }
}

/// A [`Tile`] of 8 or 4 bits. A tile register takes the inputs of one group; its sums are exact,
/// so the result has the bits of the one by AVX-512.
#[inline(always)]
unsafe fn multiply_quantized<B: Bits>(tile: &Tile) {
    const STEPS: usize = GROUP / 4;
    #[repr(C, align(64))]
    struct Aligned<T>(T);

    // SAFETY: the caller's promise.
    unsafe {
        if tile.m <= FEW {
            return avx512::tile_quantized::<B>(tile);
        }
        configure(tile.m, STEPS);
        let per_group = if B::FOUR { GROUP / 8 } else { STEPS };
        let groups = tile.steps / per_group;
        // What is computed for rows that the tile does not have is thrown away.
        let rows: [Row; TILE_ROWS] =
            std::array::from_fn(|i| Row::of(tile, i.min(tile.m - 1), groups));
        let mut products = Aligned([[0_i32; LANES]; TILE_ROWS]);
        let mut unpacked = Aligned([[0_u8; STEP_BYTES]; STEPS]);
        for j in 0..tile.n {
            let mut sums = [[_mm512_setzero_ps(); 1]; TILE_ROWS];
            let panel = tile.panels.add(j * tile.panel_bytes);
            let part = Tile {
                scales: tile.scales.wrapping_add(j * tile.panel_scales),
                minima: tile.minima.wrapping_add(j * tile.panel_scales),
                ..*tile
            };
            for g in 0..groups {
                let mut weights = panel.add(g * per_group * STEP_BYTES);
                if tile.ahead > 0 {
                    for s in 0..per_group {
                        let line = weights.wrapping_add(tile.ahead + s * STEP_BYTES);
                        _mm_prefetch::<_MM_HINT_T1>(line.cast());
                    }
                }
                if B::FOUR {
                    let low = _mm512_set1_epi8(15);
                    for s in 0..per_group {
                        let word = _mm512_loadu_si512(weights.add(s * STEP_BYTES).cast());
                        let high = _mm512_and_si512(_mm512_srli_epi16::<4>(word), low);
                        let [first, second] = [2 * s, 2 * s + 1].map(|s| &raw mut unpacked.0[s]);
                        _mm512_store_si512(first.cast(), _mm512_and_si512(word, low));
                        _mm512_store_si512(second.cast(), high);
                    }
                    weights = unpacked.0.as_ptr().cast();
                }
                clear::<0>();
                load::<4>(tile.rows.add(g * GROUP), tile.row_bytes);
                load::<6>(weights, STEP_BYTES);
                add_bytes::<0, 4, 6>();
                store::<0>(products.0.as_mut_ptr().cast(), STEP_BYTES);
                let mut dots = [[_mm512_setzero_si512(); 1]; TILE_ROWS];
                for i in 0..TILE_ROWS {
                    dots[i][0] = _mm512_load_si512(products.0[i].as_ptr().cast());
                    if !B::FOUR {
                        // The level 128 is 0.
                        let zero = _mm512_set1_epi32(-128 * *rows[i].sums.add(g));
                        dots[i][0] = _mm512_add_epi32(dots[i][0], zero);
                    }
                }
                add_group::<B, TILE_ROWS, 1>(&part, g, &rows, &dots, &mut sums);
            }
            for i in 0..tile.m {
                let out = tile.out.add(i * tile.out_stride + j * tile.out_panel);
                _mm512_storeu_ps(out, sums[i][0]);
            }
        }
    }
}

/// The products of attention with keys and values in bf16.
struct Tiles;

impl Products for Tiles {
    const ROWS_BF16: bool = true;
    const STEP_VALUES: usize = 2;

    #[inline(always)]
    unsafe fn scores(queries: Packed, keys: &[*const u8], steps: usize, out: *mut f32) {
        let mut done = 0;
        while done < keys.len() {
            let keys = &keys[done..];
            let sums = Sums {
                out: out.wrapping_add(done * LANES),
                stride: SCORE_STRIDE,
                panel: LANES,
                begun: false,
            };
            macro_rules! go {
                ($N:literal) => {{
                    let panels: [*const u8; $N] = std::array::from_fn(|j| keys[j]);
                    multiply_panels::<false, $N>(panels, queries, steps, 0, sums);
                    $N
                }};
            }
            // SAFETY: the caller's promise.
            done += unsafe {
                match keys.len() {
                    1 => go!(1),
                    2 | 3 => go!(2),
                    _ => go!(4),
                }
            };
        }
    }

    #[inline(always)]
    unsafe fn values(weights: Packed, values: &Values<'_>, out: *mut f32) {
        let Values {
            blocks,
            panels,
            steps,
            last_steps,
        } = *values;
        let last = blocks.len() - 1;
        // A tile takes the positions of one block. What lies behind the last one that is seen may
        // be anything, and 0 times that need not be 0.
        let parts = if last_steps == steps {
            [(0, blocks.len(), steps), (0, 0, 0)]
        } else {
            [(0, last, steps), (last, 1, last_steps)]
        };
        let panel_bytes = steps * STEP_BYTES;
        for (from, count, part_steps) in parts {
            if count == 0 {
                continue;
            }
            // SAFETY: the caller's promise.
            unsafe { configure(weights.count, part_steps) };
            let mut panel = 0;
            while panel < panels {
                let sums = Sums {
                    out: out.wrapping_add(panel * LANES),
                    stride: panels * LANES,
                    panel: LANES,
                    begun: from > 0,
                };
                macro_rules! go {
                    ($N:literal) => {{
                        pass::<false, $N>(
                            count,
                            |k| weights.at.add((from + k) * steps * 4),
                            weights.bytes,
                            |k, j| blocks[from + k].add((panel + j) * panel_bytes),
                            0,
                            sums,
                        );
                        $N
                    }};
                }
                // SAFETY: the caller's promise.
                panel += unsafe {
                    match panels - panel {
                        1 => go!(1),
                        2 | 3 => go!(2),
                        _ => go!(4),
                    }
                };
            }
        }
    }
}
