//! The kernels, in CubeCL: one source for CUDA, ROCm, Vulkan, Metal, WebGPU and CubeCL's CPU runtime.
//!
//! Rules they keep to. Tensors are dense: element `i` of the logical order is element `i` in memory ([`super::memory::dense`]). Sums
//! within a cube are trees in shared memory of a power of two of units, which every runtime has, and the same bits every
//! run; nothing is added atomically. Numbers are f32 in the kernel whatever is stored. A row is a cube's, or an element a
//! unit's; grids may be larger than asked for, so every kernel looks whether there is anything for it.

pub(super) mod attention;
pub(super) mod decode;
pub(super) mod few_rows;
pub(super) mod linear;
pub(super) mod norm;
pub(super) mod pointwise;
pub(super) mod sample;
pub(super) mod scores;
pub(super) mod tiles;
pub(super) mod update;

use cubecl::prelude::*;

/// The sum of `value` over the units of the cube, on every one of them.
#[cube]
pub(super) fn sum(value: f32, #[comptime] units: usize) -> f32 {
    let mut slots = Shared::new_slice(units);
    sum_in(&mut slots, value)
}

/// [`sum`] in slots that are there already, one for each unit; what was in them is lost.
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
    sync_cube(); // the slots may be used again
    total
}

/// The largest `value` of the units of the cube, on every one of them.
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
    sync_cube(); // the slots may be used again
    largest
}

#[cube]
pub(super) fn least(a: usize, b: usize) -> usize {
    if a < b { a } else { b }
}
