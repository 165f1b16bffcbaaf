//! Compiles every kernel for CUDA, without a device: to PTX, with the compiler of the CUDA backend. As on a GPU, that
//! needs the CUDA toolkit's `libdevice` (`CUDA_PATH`; `.ci/libdevice` gets it). If `TEMPERING_PTX_DIR` is set, the PTX
//! is written to that directory: `ptxas -v -arch=sm_90a FILE` prints its registers, `nvdisasm` its instructions.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

use cubecl::ir::features::{Features, MmaConfig};
use cubecl::ir::nvidia::SmArch;
use cubecl::ir::{DeviceIdentity, ElemType, FloatKind, HardwareProperties, MemoryDeviceProperties};
use cubecl::prelude::*;
use cubecl::{Compiler, ExecutionMode};
use cubecl_llvm::nvptx::ptx_version::PtxVersion;
use cubecl_llvm::{LlvmTarget, PlironArtifact, PlironCompiler, PlironOptions};

use super::kernels::{
    attention, decode, few_rows, linear, norm, pointwise, sample, scalar_few_rows, scores, tiles, update,
};

/// Sources of the kernels, and of `kernels/mod.rs`.
const SOURCES: [(&str, &str); 12] = [
    ("mod", include_str!("kernels/mod.rs")),
    ("attention", include_str!("kernels/attention.rs")),
    ("decode", include_str!("kernels/decode.rs")),
    ("few_rows", include_str!("kernels/few_rows.rs")),
    ("scalar_few_rows", include_str!("kernels/scalar_few_rows.rs")),
    ("linear", include_str!("kernels/linear.rs")),
    ("norm", include_str!("kernels/norm.rs")),
    ("pointwise", include_str!("kernels/pointwise.rs")),
    ("sample", include_str!("kernels/sample.rs")),
    ("scores", include_str!("kernels/scores.rs")),
    ("tiles", include_str!("kernels/tiles.rs")),
    ("update", include_str!("kernels/update.rs")),
];

const F32: ElemType = ElemType::Float(FloatKind::F32);
const F16: ElemType = ElemType::Float(FloatKind::F16);
const BF16: ElemType = ElemType::Float(FloatKind::BF16);
const FORMATS: [ElemType; 3] = [F32, BF16, F16];

/// A kernel with one set of compile-time parameters.
struct Case {
    kernel: Box<dyn CubeKernel>,
    /// Its file and function.
    name: &'static str,
    /// Its compile-time parameters.
    form: String,
}

/// Device properties as the runtime reports them, as far as our kernels use them.
fn device() -> Arc<DeviceProperties> {
    static DEVICE: LazyLock<Arc<DeviceProperties>> = LazyLock::new(|| {
        let hardware = HardwareProperties {
            load_width: 128,
            vector_register_count: None,
            plane_size_min: 32,
            plane_size_max: 32,
            max_bindings: 1024,
            max_shared_memory_size: 99 << 10,
            max_cube_count: (i32::MAX as u32, u16::MAX.into(), u16::MAX.into()),
            max_units_per_cube: 1024,
            max_cube_dim: (1024, 1024, 64),
            num_streaming_multiprocessors: Some(132),
            num_tensor_cores: Some(4),
            min_tensor_cores_dim: Some(8),
            num_cpu_cores: None,
            last_level_cache_size: None,
            max_vector_size: VectorSize::MAX,
            cube_mma_reserved_shared_memory: 0,
        };
        let memory = MemoryDeviceProperties::new(u64::MAX, 512);
        let timing = cubecl::profile::TimingMethod::Device;
        let mut device =
            DeviceProperties::new(Features::default(), memory, hardware, timing, DeviceIdentity::default());
        for format in [BF16, F16] {
            let fragment = MmaConfig { a_type: format, b_type: format, cd_type: F32, m: 16, n: 16, k: 16 };
            device.features.matmul.cmma.insert(fragment);
            device.features.matmul.mma.insert(MmaConfig { n: 8, ..fragment });
            device.features.matmul.ldmatrix.insert(format);
        }
        Arc::new(device)
    });
    DEVICE.clone()
}

fn buffer() -> BufferCompilationArg {
    BufferCompilationArg { inplace: None }
}

fn tensor() -> TensorCompilationArg {
    TensorCompilationArg { meta: TensorMetaCompilationArg { len: (), rank: () }, buffer: buffer() }
}

/// A tensor in the memory of the input at `position`.
fn alias(position: usize) -> TensorCompilationArg {
    TensorCompilationArg { buffer: BufferCompilationArg { inplace: Some(position) }, ..tensor() }
}

/// Placements of a result: in new memory, or in that of the input at `position`.
fn output_placements(position: usize) -> [(&'static str, TensorCompilationArg); 2] {
    [("", tensor()), ("in place", alias(position))]
}

const ADDRESSES: [AddressType; 2] = [AddressType::U32, AddressType::U64];

/// Appends a kernel. After its block and its address type come its buffers and scalars, then its compile-time
/// parameters, the vector size first.
macro_rules! case {
    ($cases:ident, $file:ident::$name:ident as $kernel:ident, $cube:expr, $addresses:expr, $form:expr, [$($argument:expr),* $(,)?]) => {
        $cases.push(Case {
            kernel: Box::new($file::$name::$kernel::new(
                KernelSettings::new($cube.into(), ExecutionMode::Checked, $addresses),
                device(),
                Arc::default(),
                $($argument),*
            )),
            name: concat!(stringify!($file), "::", stringify!($name)),
            form: format!("{:?} {:?}", $addresses, $form),
        })
    };
}

/// Every kernel, with the compile-time parameters with which it is launched.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    small_tensor_kernels(&mut cases);
    for addresses in ADDRESSES {
        elementwise_kernels(&mut cases, addresses);
        attention_weights(&mut cases, addresses);
        decoding(&mut cases, addresses);
        vocabulary_kernels(&mut cases, addresses);
        for format in [BF16, F16] {
            matrix_products(&mut cases, addresses, format);
        }
        for format in FORMATS {
            scalar_products(&mut cases, addresses, format);
        }
    }
    cases
}

/// A one-dimensional block.
fn line(units: u32) -> CubeDim {
    CubeDim::new_1d(units)
}

/// Kernels that need no 64-bit addresses.
fn small_tensor_kernels(cases: &mut Vec<Case>) {
    let (t, small) = (tensor, AddressType::U32);
    for stored in FORMATS {
        case!(cases, norm::rms_norm as RmsNorm, line(256), small, stored, [t(), t(), t(), (), 256, stored]);
        case!(
            cases,
            norm::add_rms_norm as AddRmsNorm,
            line(256),
            small,
            stored,
            [t(), t(), t(), t(), t(), (), (), 256, stored]
        );
        for vector in [1, 4] {
            case!(
                cases,
                update::adamw as Adamw,
                line(256),
                small,
                (stored, vector),
                [t(), t(), t(), t(), (), (), (), (), (), (), (), vector, stored]
            );
        }
    }
    case!(
        cases,
        norm::rms_norm_backward as RmsNormBackward,
        line(256),
        small,
        "",
        [t(), t(), t(), t(), t(), (), (), 256]
    );
    case!(cases, update::add_rows as AddRows, line(256), small, "", [t(), t(), t(), ()]);
    case!(cases, update::sums_of_squares as SumsOfSquares, line(256), small, "", [t(), t(), (), 1 << 16, 256]);
    for (place, out) in output_placements(0) {
        case!(cases, pointwise::rotary as Rotary, line(256), small, place, [t(), t(), t(), out, ()]);
    }
    for format in [F32, ElemType::Int(cubecl::ir::IntKind::I32)] {
        case!(cases, pointwise::overwrite as Overwrite, line(128), small, format, [t(), t(), format]);
    }
}

fn elementwise_kernels(cases: &mut Vec<Case>, addresses: AddressType) {
    let t = tensor;
    case!(cases, linear::add_bias as AddBias, line(256), addresses, "", [t(), t()]);
    case!(cases, norm::sum_rows as SumRows, line(64), addresses, "", [t(), t(), ()]);
    for vector in [1, 4] {
        case!(cases, pointwise::take_rows as TakeRows, line(256), addresses, vector, [t(), t(), t(), (), vector]);
        for stored in FORMATS {
            case!(
                cases,
                pointwise::swiglu as Swiglu,
                line(256),
                addresses,
                (stored, vector),
                [t(), t(), t(), vector, stored]
            );
        }
        for ((place, dgate), (_, dup)) in output_placements(0).into_iter().zip(output_placements(1)) {
            case!(
                cases,
                pointwise::swiglu_backward as SwigluBackward,
                line(256),
                addresses,
                (place, vector),
                [t(), t(), t(), dgate, dup, vector, F32]
            );
        }
    }
    for stored in [BF16, F16] {
        case!(
            cases,
            pointwise::swiglu_backward as SwigluBackward,
            line(256),
            addresses,
            (stored, 4),
            [t(), t(), t(), t(), t(), 4, stored]
        );
    }
}

fn attention_weights(cases: &mut Vec<Case>, addresses: AddressType) {
    let t = tensor;
    for (stored, place) in [(F32, 0), (F32, 1), (BF16, 1), (F16, 1)] {
        let [weights, gradient] = [0, 1].map(|input| if place == 0 { alias(input) } else { t() });
        let form = (stored, place);
        case!(
            cases,
            attention::weights as Weights,
            line(256),
            addresses,
            form,
            [t(), weights, (), (), (), 256, stored]
        );
        case!(
            cases,
            attention::weights_backward as WeightsBackward,
            line(256),
            addresses,
            form,
            [t(), t(), gradient, (), (), (), 256, stored]
        );
    }
}

fn decoding(cases: &mut Vec<Case>, addresses: AddressType) {
    let t = tensor;
    case!(cases, decode::write_rows as WriteRows, line(128), addresses, "", [t(), t(), t()]);
    for (rotates, biased) in [(true, true), (true, false), (false, true), (false, false)] {
        case!(
            cases,
            decode::rotate_and_store as RotateAndStore,
            line(128),
            addresses,
            (rotates, biased),
            [t(), t(), t(), t(), t(), t(), t(), t(), t(), t(), t(), t(), 64, rotates, biased]
        );
    }
    for (group, dim, vector) in [(7, 64, 4), (1, 128, 4), (3, 18, 1)] {
        let heads = decode::DecodeShape { group, vectors: dim / vector, units: 256 };
        for stored in FORMATS {
            case!(
                cases,
                decode::attention as Attention,
                line(256),
                addresses,
                (stored, group, dim),
                [t(), t(), t(), t(), t(), (), (), vector, heads, stored]
            );
        }
    }
}

fn vocabulary_kernels(cases: &mut Vec<Case>, addresses: AddressType) {
    let t = tensor;
    for greedy in [false, true] {
        case!(
            cases,
            sample::sample as Sample,
            line(512),
            addresses,
            greedy,
            [t(), t(), t(), t(), t(), (), (), greedy, 512]
        );
    }
    for same in [false, true] {
        case!(cases, scores::scores as Scores, line(512), addresses, same, [t(), t(), t(), t(), (), same, 512]);
    }
    for (place, gradient) in output_placements(0) {
        case!(
            cases,
            scores::scores_backward as ScoresBackward,
            line(512),
            addresses,
            place,
            [t(), t(), t(), t(), gradient, ()]
        );
    }
}

fn matrix_products(cases: &mut Vec<Case>, addresses: AddressType, format: ElemType) {
    let b = buffer;
    for (planes, part, k_contiguous, ragged) in [
        ([2, 2, 1], [64, 64], [true, true], false),
        ([2, 2, 1], [64, 64], [true, false], false),
        ([2, 2, 1], [64, 64], [false, false], true),
        ([2, 4, 1], [64, 64], [true, false], false),
        ([4, 1, 1], [64, 64], [true, false], false),
        ([4, 1, 1], [64, 64], [false, true], true),
        ([1, 2, 2], [64, 32], [true, false], false),
        ([1, 2, 2], [16, 32], [true, true], true),
        ([1, 2, 4], [64, 32], [true, false], false),
        ([1, 2, 4], [16, 32], [true, true], true),
    ] {
        let division = tiles::Division { planes, part };
        let form = tiles::Form { division, k_contiguous, ragged };
        let strides = || tiles::StridesCompilationArg { line: (), outer: (), inner: () };
        let sizes = tiles::SizesCompilationArg { m: (), n: (), k: (), inner: (), batches: (), parts: () };
        let which = (format, planes, part, k_contiguous, ragged);
        case!(
            cases,
            tiles::tiles as Tiles,
            line(division.units() as u32),
            addresses,
            which,
            [b(), b(), b(), strides(), strides(), sizes, 8, 2, form, format]
        );
    }
    for (tiles, transposed, count) in [(1, false, 1), (1, true, 1), (4, false, 3), (4, true, 2)] {
        let which = (format, tiles, transposed, count);
        case!(
            cases,
            few_rows::few_rows as FewRows,
            CubeDim::new_2d(32, 16),
            addresses,
            which,
            [b(), b(), b(), b(), b(), b(), b(), (), (), (), (), (), (), (), (), count, tiles, 16, transposed, format]
        );
    }
}

fn scalar_products(cases: &mut Vec<Case>, addresses: AddressType, format: ElemType) {
    let b = buffer;
    for (column_major, products) in [(false, 1), (true, 1), (false, 3), (true, 2)] {
        let which = (format, column_major, products);
        case!(
            cases,
            scalar_few_rows::scalar_few_rows as ScalarFewRows,
            line(scalar_few_rows::UNITS as u32),
            addresses,
            which,
            [b(), b(), b(), b(), b(), b(), b(), (), (), (), (), (), (), (), (), (), 4, products, column_major, format]
        );
    }
}

/// Compile a kernel to PTX, for the first driver of CUDA 12 and with the options of the runtime.
fn ptx_of(kernel: &dyn CubeKernel, architecture: u32) -> Result<String, String> {
    let options = PlironOptions {
        sm_arch: Some(SmArch::new(architecture, true)),
        ptx_version: PtxVersion::for_driver(12000),
        grid_constants: true,
        ..Default::default()
    };
    match (PlironCompiler { target: LlvmTarget::Nvptx }).compile(kernel.define(), &options) {
        Ok(PlironArtifact::NvptxCode(module)) => {
            Ok(module.ptx.into_iter().map(|byte| byte as u8 as char).take_while(|&byte| byte != '\0').collect())
        }
        Ok(_) => Err("no PTX".to_string()),
        Err(error) => Err(format!("{error:?}")),
    }
}

/// Return the defects in the PTX of a kernel.
fn defects(name: &str, form: &str, ptx: &str) -> Vec<&'static str> {
    let instruction = |start: &str| ptx.split_whitespace().any(|word| word.starts_with(start));
    let mut defects = Vec::new();
    if !ptx.contains(".visible .entry ") {
        defects.push("no entry point");
    }
    // Atomic operations, with and without a result: sums would depend on the order of blocks.
    if instruction("atom.") || instruction("red.") {
        defects.push("atomic operations");
    }
    // Values that should be in registers are in memory.
    if instruction(".local") || instruction("ld.local") || instruction("st.local") {
        defects.push("local memory");
    }
    let fragments = ptx.lines().filter(|line| line.contains("wmma.mma.sync"));
    let in_bf16 = fragments.clone().any(|line| line.contains(".m16n16k16.f32.bf16.bf16.f32"));
    if name == "few_rows::few_rows" && (fragments.count() == 0 || form.contains("BF16") != in_bf16) {
        defects.push("no tensor cores for its format");
    }
    defects
}

fn compile_all(architecture: u32) {
    let mut failures = Vec::new();
    for Case { kernel, name, form } in cases() {
        match ptx_of(&*kernel, architecture) {
            Ok(ptx) => {
                if let Ok(dir) = std::env::var("TEMPERING_PTX_DIR") {
                    let file = format!("{dir}/{architecture} {name} {form}.ptx").replace("::", "-");
                    std::fs::write(file.replace(['"', '[', ']', '(', ')', ',', ' '], "_").replace("__", "_"), &ptx)
                        .unwrap();
                }
                for defect in defects(name, &form, &ptx) {
                    failures.push(format!("{name}, {form}: {defect}"));
                }
            }
            Err(error) if error.contains("libdevice.10.bc was not found") => panic!("{error}\n.ci/libdevice gets it"),
            Err(error) => failures.push(format!("{name}, {form}: {error}")),
        }
    }
    assert!(failures.is_empty(), "sm_{architecture}:\n{}", failures.join("\n"));
}

#[test]
fn every_kernel_compiles_for_ampere() {
    compile_all(80);
}

#[test]
fn every_kernel_compiles_for_hopper() {
    compile_all(90);
}

/// Names of the kernel functions in a source file.
fn kernels(file: &str, source: &str) -> Vec<String> {
    let functions = source.split("#[cube(launch").skip(1).map(|rest| {
        let (_, rest) = rest.split_once("fn ").expect("a function after #[cube(launch…)]");
        rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default()
    });
    functions.map(|name| format!("{file}::{name}")).collect()
}

#[test]
fn no_kernel_is_forgotten() {
    let (_, modules) = SOURCES[0];
    let files: BTreeSet<&str> = modules
        .lines()
        .filter_map(|line| line.strip_suffix(';').and_then(|line| line.split_once("mod ")))
        .map(|(_, name)| name)
        .collect();
    let read: BTreeSet<&str> = SOURCES[1..].iter().map(|(file, _)| *file).collect();
    assert_eq!(files, read, "the files of kernels, and those that are read here");

    let written: BTreeSet<String> = SOURCES.iter().flat_map(|(file, source)| kernels(file, source)).collect();
    let compiled: BTreeSet<String> = cases().iter().map(|case| case.name.to_string()).collect();
    assert_eq!(written, compiled, "the kernels of the sources, and those that are compiled here");
}
