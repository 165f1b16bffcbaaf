//! The kernels, in CubeCL: one source for CUDA, ROCm, Vulkan, Metal, WebGPU and CubeCL's CPU runtime.
//!
//! CubeCL's names are used in the code, CUDA's in comments: a cube is a thread block, a unit a thread, a plane a warp.
//!
//! Tensors are contiguous: element `i` of the logical order is element `i` in memory ([`super::memory::dense`]). Sums
//! within a block are trees in shared memory over a power of two of threads: every runtime supports them, and they give
//! the same bits in every run. There are no atomic additions. Kernels compute in f32 whatever the storage format. A row
//! is computed by a block, or an element by a thread. Grids may be larger than requested, so kernels check their index.

pub(super) mod attention;
pub(super) mod decode;
pub(super) mod few_rows;
pub(super) mod linear;
pub(super) mod norm;
pub(super) mod pointwise;
pub(super) mod sample;
pub(super) mod scalar_few_rows;
pub(super) mod scores;
pub(super) mod tiles;
pub(super) mod update;

use cubecl::prelude::*;

/// Sum of `value` over the threads of the block, returned to each; `units` is the block size.
#[cube]
pub(super) fn sum(value: f32, #[comptime] units: usize) -> f32 {
    let mut slots = Shared::new_slice(units);
    sum_in(&mut slots, value)
}

/// [`sum`] in existing shared memory with one slot per thread, which is overwritten.
#[cube]
pub(super) fn sum_in(slots: &mut Shared<[f32]>, value: f32) -> f32 {
    slots[UNIT_POS as usize] = value;
    sync_cube();
    let mut active = CUBE_DIM;
    while active > 1 {
        active /= 2;
        if UNIT_POS < active {
            let other = slots[(UNIT_POS + active) as usize];
            slots[UNIT_POS as usize] += other;
        }
        sync_cube();
    }
    let total = slots[0];
    sync_cube(); // before the slots are reused
    total
}

/// Maximum of `value` over the threads of the block, returned to each; `units` is the block size.
#[cube]
pub(super) fn max(value: f32, #[comptime] units: usize) -> f32 {
    let mut slots = Shared::new_slice(units);
    slots[UNIT_POS as usize] = value;
    sync_cube();
    let mut active = CUBE_DIM;
    while active > 1 {
        active /= 2;
        if UNIT_POS < active {
            let other = slots[(UNIT_POS + active) as usize];
            if other > slots[UNIT_POS as usize] {
                slots[UNIT_POS as usize] = other;
            }
        }
        sync_cube();
    }
    let largest = slots[0];
    sync_cube(); // before the slots are reused
    largest
}

#[cube]
pub(super) fn least(a: usize, b: usize) -> usize {
    if a < b { a } else { b }
}
