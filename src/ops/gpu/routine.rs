//! Kernels for matrix products: those of `cubek`, and our own.

use std::fmt::{Display, Formatter, Result as FmtResult};

use cubek::matmul::multi_level::Strategy as Levels;
use cubek::matmul::multi_level::components::tile::TileMatmulKind;
use cubek::matmul::multi_level::routines::TileSizeSelection;
use cubek::matmul::multi_level::routines::batch::{
    double_buffering::DoubleBufferingArgs, double_unit::DoubleUnitSelectionArgs,
    ordered_double_buffering::OrderedSelectionArgs, simple::SimpleArgs, simple_unit::SimpleUnitSelectionArgs,
    specialized::SpecializedStrategy,
};
use cubek::matmul::routine::BlueprintStrategy::Inferred;
use cubek::matmul::strategy::Strategy;
use cubek::matmul::tiled::Strategy as Tiled;

use super::tensor_cores::Tiling;

/// Programming interface of tensor cores: fragments in a layout chosen by the compiler (`Cmma`), or registers (`Mma`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Cores {
    Cmma,
    Mma,
}

use Cores::{Cmma, Mma};

impl Cores {
    pub(super) fn kind(self) -> TileMatmulKind {
        match self {
            Cmma => TileMatmulKind::Cmma,
            Mma => TileMatmulKind::Mma,
        }
    }
}

/// A kernel for matrix products. CubeCL's plane is a warp, its unit a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Routine {
    /// Tensor cores, for so few rows that each warp computes all of them: our own, see `kernels/few_rows.rs`.
    FewRows,
    /// No tensor cores, for few rows: our own, see `kernels/scalar_few_rows.rs`.
    ScalarFewRows,
    /// Tensor cores: our own, see `kernels/tiles.rs`.
    Tiles(Tiling),
    /// Tensor cores, one stage in shared memory; with `many_rows`, two rows of tiles per warp.
    Simple { cores: Cores, many_rows: bool },
    /// Tensor cores, double-buffered; each warp reads its own rows of the left-hand operand.
    Ordered { cores: Cores, rows: u32 },
    /// Tensor cores, double-buffered; if `specialized`, dedicated warps load.
    Double { cores: Cores, specialized: bool },
    /// Tensor cores, loaded by dedicated warps with asynchronous copies.
    Specialized { cores: Cores },
    /// Tensor cores, loaded by the Tensor Memory Accelerator of Hopper and later.
    Accelerated { cores: Cores, many_rows: bool },
    /// The same, with dedicated warps that load.
    AcceleratedSpecialized { cores: Cores },
    /// No tensor cores: a thread per small tile, one stage.
    Unit { large: bool },
    /// The same, double-buffered.
    DoubleUnit { large: bool },
    /// No stages in shared memory.
    Gemm,
    /// Register blocks, for CPUs.
    Processor,
    /// A thread per element of the result; works everywhere.
    Naive,
}

impl Routine {
    /// All routines, the expected fastest on large products first.
    pub(crate) const ALL: [Self; 30] = [
        Self::FewRows,
        Self::ScalarFewRows,
        Self::Tiles(Tiling::Deep),
        Self::Tiles(Tiling::Few),
        Self::Tiles(Tiling::Square),
        Self::Tiles(Tiling::Wide),
        Self::Tiles(Tiling::Narrow),
        Self::Ordered { cores: Mma, rows: 8 },
        Self::Ordered { cores: Cmma, rows: 8 },
        Self::Ordered { cores: Mma, rows: 4 },
        Self::Ordered { cores: Cmma, rows: 4 },
        Self::Double { cores: Mma, specialized: false },
        Self::Double { cores: Cmma, specialized: false },
        Self::Simple { cores: Mma, many_rows: true },
        Self::Simple { cores: Cmma, many_rows: true },
        Self::Simple { cores: Mma, many_rows: false },
        Self::Simple { cores: Cmma, many_rows: false },
        Self::Double { cores: Mma, specialized: true },
        Self::Double { cores: Cmma, specialized: true },
        Self::Specialized { cores: Mma },
        Self::Specialized { cores: Cmma },
        Self::Accelerated { cores: Mma, many_rows: true },
        Self::Accelerated { cores: Cmma, many_rows: true },
        Self::AcceleratedSpecialized { cores: Mma },
        Self::AcceleratedSpecialized { cores: Cmma },
        Self::Unit { large: true },
        Self::DoubleUnit { large: true },
        Self::Gemm,
        Self::Processor,
        Self::Naive,
    ];

    /// Interface to tensor cores of a `cubek` routine; `None` for other routines.
    pub(crate) fn cores(self) -> Option<Cores> {
        match self {
            Self::Simple { cores, .. }
            | Self::Ordered { cores, .. }
            | Self::Double { cores, .. }
            | Self::Specialized { cores }
            | Self::Accelerated { cores, .. }
            | Self::AcceleratedSpecialized { cores } => Some(cores),
            _ => None,
        }
    }

    /// Strategy for `cubek`; `None` for our own kernels.
    pub(super) fn strategy(self) -> Option<Strategy> {
        let size = |large| if large { TileSizeSelection::MaxTileSize } else { TileSizeSelection::MinTileSize };
        Some(match self {
            Self::FewRows | Self::ScalarFewRows | Self::Tiles(_) => return None,
            Self::Simple { cores, many_rows } => {
                let args = SimpleArgs { tile_matmul: cores.kind(), multi_rows: many_rows };
                match cores {
                    Cmma => Levels::SimpleCyclicCmma(Inferred(args)).into(),
                    Mma => Levels::SimpleCyclicMma(Inferred(args)).into(),
                }
            }
            Self::Ordered { cores, rows } => {
                let args = OrderedSelectionArgs {
                    tile_matmul: cores.kind(),
                    partition_k: Some(2),
                    row_count: Some(rows),
                    rows_per_plane: Some(2),
                };
                match cores {
                    Cmma => Levels::OrderedDoubleCmma(Inferred(args)).into(),
                    Mma => Levels::OrderedDoubleMma(Inferred(args)).into(),
                }
            }
            Self::Double { cores, specialized } => {
                let args = DoubleBufferingArgs { tile_matmul: cores.kind(), specialized };
                match cores {
                    Cmma => Levels::DoubleCyclicCmma(Inferred(args)).into(),
                    Mma => Levels::DoubleCyclicMma(Inferred(args)).into(),
                }
            }
            Self::Specialized { cores } => {
                let args = SpecializedStrategy { tile_matmul: cores.kind() };
                match cores {
                    Cmma => Levels::SpecializedCyclicCmma(Inferred(args)).into(),
                    Mma => Levels::SpecializedCyclicMma(Inferred(args)).into(),
                }
            }
            Self::Accelerated { cores, many_rows } => {
                let args = SimpleArgs { tile_matmul: cores.kind(), multi_rows: many_rows };
                match cores {
                    Cmma => Levels::SimpleTmaCmma(Inferred(args)).into(),
                    Mma => Levels::SimpleTmaMma(Inferred(args)).into(),
                }
            }
            Self::AcceleratedSpecialized { cores } => {
                let args = SpecializedStrategy { tile_matmul: cores.kind() };
                match cores {
                    Cmma => Levels::SpecializedTmaCmma(Inferred(args)).into(),
                    Mma => Levels::SpecializedTmaMma(Inferred(args)).into(),
                }
            }
            Self::Unit { large } => {
                Levels::SimpleUnit(Inferred(SimpleUnitSelectionArgs { tile_size: size(large) })).into()
            }
            Self::DoubleUnit { large } => {
                Levels::DoubleUnit(Inferred(DoubleUnitSelectionArgs { tile_size: size(large) })).into()
            }
            Self::Gemm => Levels::Gemm(Inferred(Default::default())).into(),
            Self::Processor => Tiled::CpuGemm(Inferred(Default::default())).into(),
            Self::Naive => Levels::Naive.into(),
        })
    }
}

impl Display for Routine {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        let name = |cores: &Cores| if *cores == Cmma { "cmma" } else { "mma" };
        match self {
            Self::FewRows => f.write_str("few-rows"),
            Self::ScalarFewRows => f.write_str("few-rows-scalar"),
            Self::Tiles(tiling) => write!(f, "tiles-{}", format!("{tiling:?}").to_lowercase()),
            Self::Simple { cores, many_rows: false } => write!(f, "simple-{}", name(cores)),
            Self::Simple { cores, many_rows: true } => write!(f, "simple-{}-many-rows", name(cores)),
            Self::Ordered { cores, rows } => write!(f, "ordered-{}-{rows}", name(cores)),
            Self::Double { cores, specialized: false } => write!(f, "double-{}", name(cores)),
            Self::Double { cores, specialized: true } => write!(f, "double-{}-specialized", name(cores)),
            Self::Specialized { cores } => write!(f, "specialized-{}", name(cores)),
            Self::Accelerated { cores, many_rows: false } => write!(f, "tma-{}", name(cores)),
            Self::Accelerated { cores, many_rows: true } => write!(f, "tma-{}-many-rows", name(cores)),
            Self::AcceleratedSpecialized { cores } => write!(f, "tma-{}-specialized", name(cores)),
            Self::Unit { large } => write!(f, "unit-{}", if *large { "large" } else { "small" }),
            Self::DoubleUnit { large } => write!(f, "double-unit-{}", if *large { "large" } else { "small" }),
            Self::Gemm => f.write_str("gemm"),
            Self::Processor => f.write_str("processor"),
            Self::Naive => f.write_str("naive"),
        }
    }
}
