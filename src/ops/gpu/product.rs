//! Matrix products. A rule chooses the kernel, in place of a tuner that compiles and times some twenty of them for
//! every shape. `tempering bench products` measures the candidates.

use std::collections::HashMap;
use std::sync::Mutex;

use burn::tensor::DType;
use burn_cubecl::CubeDevice;
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::Client;
use cubecl::future::block_on;
use cubek::matmul::definition::{MatmulElems, MatmulGlobalElems};
use cubek::matmul::launch::launch_ref;
use cubek::matmul::multi_level::definition::adjust_dtypes;
use cubek::std::InputBinding;

use super::memory::{elem, empty};
use super::routine::Cores::{self, Cmma, Mma};
use super::routine::Routine;
use super::scalar_few_rows::{self, scalar_few_rows};
use super::tensor_cores::{Tiling, few_rows, few_rows_serves, same_layout, tiles, tilings};

/// Properties of a (batched) product of `[m, k]` and `[k, n]` that the rule depends on.
#[derive(Debug, Clone)]
pub(crate) struct ProductSpec {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// Whether the runtime executes on the cores of a CPU.
    pub processor: bool,
    /// Interfaces to tensor cores that support these formats, registers before fragments.
    pub cores: [Option<Cores>; 2],
    /// Whether [`Routine::FewRows`] supports it.
    pub few_rows: bool,
    /// Whether [`Routine::ScalarFewRows`] supports it.
    pub scalar_few_rows: bool,
    /// Tilings with which [`Routine::Tiles`] supports it.
    pub tilings: Vec<Tiling>,
}

impl ProductSpec {
    pub(crate) fn of(lhs: &CubeTensor, rhs: &CubeTensor, relaxed: bool) -> Self {
        let client = &lhs.client;
        let [m, k] = matrix(lhs.meta.shape());
        let [_, n] = matrix(rhs.meta.shape());
        let exact = lhs.dtype == DType::F32 && !relaxed;
        let cores = if exact { [None; 2] } else { supported_cores(lhs, [lhs.dtype, rhs.dtype]) };
        Self {
            m,
            n,
            k,
            processor: client.properties().hardware.num_cpu_cores.is_some(),
            cores,
            few_rows: cores[1].is_some() && few_rows_serves(lhs, rhs),
            scalar_few_rows: scalar_few_rows::serves(lhs, rhs),
            tilings: tilings(lhs, rhs),
        }
    }
}

/// Interfaces to tensor cores that support these formats on the device of `like`; queried once and cached.
fn supported_cores(like: &CubeTensor, formats: [DType; 2]) -> [Option<Cores>; 2] {
    type CoresCache = HashMap<(CubeDevice, [DType; 2]), [Option<Cores>; 2]>;
    static CACHE: Mutex<Option<CoresCache>> = Mutex::new(None);
    let mut cache = CACHE.lock().expect("no panic while it is held");
    let query = || [Mma, Cmma].map(|cores| supports(&like.client, cores, formats).then_some(cores));
    *cache.get_or_insert_default().entry((like.device.clone(), formats)).or_insert_with(query)
}

/// Whether the device has such an instruction for operands of these formats.
fn supports(client: &Client, cores: Cores, formats: [DType; 2]) -> bool {
    let mut elems = elems(formats);
    // f32 becomes TF32 on tensor cores.
    adjust_dtypes(client, &mut elems, true);
    !cores.kind().supported_sizes(client, elems.lhs_register, elems.rhs_register, elems.acc_register).is_empty()
}

/// The rule: routines for a product in order of preference; the later ones are fallbacks if one cannot be set up.
pub(crate) fn routines(spec: &ProductSpec) -> Vec<Routine> {
    let ProductSpec { m, n, k, processor, cores: [registers, fragments], .. } = *spec;
    let mut order = Vec::new();
    if processor {
        // Made for CPUs; the threads of the others synchronise, which is slow on CPU cores.
        return vec![Routine::Processor, Routine::Gemm, Routine::Naive];
    }
    let own = |tiling: Tiling| spec.tilings.contains(&tiling).then_some(Routine::Tiles(tiling));
    // Decoding: the others have too few blocks to read `rhs` at full bandwidth (H100, 64 x 896 x 896: 30 us).
    let few = spec.few_rows.then_some(Routine::FewRows);
    if m <= 64 && n.max(k) >= 2048 {
        order.extend(own(Tiling::Deep));
        order.extend(own(Tiling::Few));
        order.extend(few);
    } else {
        order.extend(few);
        order.extend((n <= 64).then(|| own(Tiling::Narrow)).flatten());
        order.extend(own(Tiling::Square));
    }
    // No tensor cores for these formats; in TF32, too, reading `rhs` takes longer than the products.
    order.extend(spec.scalar_few_rows.then_some(Routine::ScalarFewRows));
    // Large enough to fill a GPU with tiles of 128 x 128, and deep enough to hide loads behind arithmetic.
    let large = m >= 512 && n >= 512 && k >= 128;
    if let (true, Some(cores)) = (large, registers.or(fragments)) {
        // Each row of `lhs` is read once per warp, and the loads of the next stage are hidden.
        order.push(Routine::Ordered { cores, rows: 8 });
        // The same without ordered rows, for layouts that `Ordered` does not support.
        order.push(Routine::Double { cores, specialized: false });
    }
    for cores in [registers, fragments].into_iter().flatten() {
        // A narrow or shallow product: one stage and small tiles, so that there are enough of them. Registers are
        // faster than fragments (H100, all shapes of decoding).
        order.push(Routine::Simple { cores, many_rows: m >= 512 });
    }
    // No tensor cores, or none that support this product.
    order.push(Routine::Unit { large: true });
    // Works everywhere.
    order.push(Routine::Naive);
    order
}

/// Everything that a routine's success depends on. Each key is tried once; a failure is not retried.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct RoutineKey {
    routine: Routine,
    device: CubeDevice,
    dtypes: [DType; 2],
    /// Binary logarithms of m, n and k, up to 13: tiles are chosen by size.
    sizes: [u32; 3],
    /// Whether each operand is row-major, and the power of two, up to 16, that divides its line length and stride.
    layouts: [(bool, usize); 2],
    /// The same power of two of the result's width.
    width: usize,
}

impl RoutineKey {
    fn new(routine: Routine, spec: &ProductSpec, lhs: &CubeTensor, rhs: &CubeTensor) -> Self {
        Self {
            routine,
            device: lhs.device.clone(),
            dtypes: [lhs.dtype, rhs.dtype],
            sizes: [spec.m, spec.n, spec.k].map(|size| (size.max(1) as u64).ilog2().min(13)),
            layouts: [layout(lhs), layout(rhs)],
            width: alignment(spec.n),
        }
    }

    /// Whether the routine works, if it has been tried.
    fn outcome(&self) -> Option<bool> {
        TRIED.lock().expect("no panic while it is held").get_or_insert_default().get(self).copied()
    }
}

static TRIED: Mutex<Option<HashMap<RoutineKey, bool>>> = Mutex::new(None);

/// `lhs · rhs`; sums and the result are in f32. Operands may be strided views. If `relaxed`, f32 operands may be
/// rounded to the input format of tensor cores.
///
/// # Shapes
/// - lhs: `[.., m, k]`; rhs: `[.., k, n]`; output: `[.., m, n]`
pub(crate) fn product(lhs: CubeTensor, rhs: CubeTensor, relaxed: bool) -> CubeTensor {
    let spec = ProductSpec::of(&lhs, &rhs, relaxed);
    let mut reasons = Vec::new();
    for routine in routines(&spec) {
        let key = RoutineKey::new(routine, &spec, &lhs, &rhs);
        let known = key.outcome();
        if known == Some(false) {
            continue;
        }
        let result = launch(routine, lhs.clone(), rhs.clone()).and_then(|product| match known {
            Some(_) => Ok(product),
            // The first with this key: whether the kernel compiled is known only after it has run.
            None => ran(&product).map(|()| product),
        });
        if result.is_err() {
            // An operand that failed to compute is not the routine's fault.
            for operand in [&lhs, &rhs] {
                ran(operand).unwrap_or_else(|reason| panic!("a factor of a matrix product was not computed: {reason}"));
            }
        }
        if known.is_none() {
            TRIED.lock().expect("no panic while it is held").get_or_insert_default().insert(key, result.is_ok());
        }
        match result {
            Ok(product) => return product,
            Err(reason) => {
                tracing::debug!("matrix product by {routine}: {reason}");
                reasons.push(format!("{routine}: {reason}"));
            }
        }
    }
    panic!("no routine computes the product {spec:?}: {}", reasons.join("; "))
}

/// Wait until a tensor is computed; the error says what failed.
pub(crate) fn ran(tensor: &CubeTensor) -> Result<(), String> {
    block_on(tensor.client.sync_buffers([&tensor.handle])).map_err(|error| format!("{error:?}"))
}

/// Compute the product with a given routine.
///
/// # Errors
/// If the routine cannot be set up for this product. A kernel that does not compile is reported later, by [`ran`].
pub(crate) fn launch(routine: Routine, lhs: CubeTensor, rhs: CubeTensor) -> Result<CubeTensor, String> {
    let mut shape = lhs.meta.shape().clone();
    let last = shape.num_dims() - 1;
    shape[last] = rhs.meta.shape()[last];
    let product = empty(&lhs, shape, DType::F32);
    if product.meta.num_elements() == 0 {
        return Ok(product);
    }
    let Some(strategy) = routine.strategy() else {
        match routine {
            Routine::FewRows => few_rows(lhs, &[rhs], std::slice::from_ref(&product)),
            Routine::ScalarFewRows => scalar_few_rows(lhs, &[rhs], std::slice::from_ref(&product)),
            Routine::Tiles(tiling) => tiles(lhs, rhs, product.clone(), tiling),
            _ => unreachable!("a routine of cubek"),
        }
        return Ok(product);
    };
    let client = lhs.client.clone();
    let mut elems = elems([lhs.dtype, rhs.dtype]);
    let [lhs, rhs] = [lhs, rhs].map(|operand| {
        let format = elem(operand.dtype);
        InputBinding::new(operand.binding(), format)
    });
    launch_ref(&strategy, &client, lhs, rhs, product.clone().binding(), &mut elems)
        .map_err(|error| error.to_string().trim().to_string())?;
    Ok(product)
}

/// Products of `lhs` with each `rhs`, in f32; one launch for two or three of which [`Routine::FewRows`] or
/// [`Routine::ScalarFewRows`] has computed the like.
pub(crate) fn products<const N: usize>(lhs: CubeTensor, rhs: [CubeTensor; N], relaxed: bool) -> [CubeTensor; N] {
    let proven = |rhs: &CubeTensor| {
        let spec = ProductSpec::of(&lhs, rhs, relaxed);
        let routine = routines(&spec)[0];
        (RoutineKey::new(routine, &spec, &lhs, rhs).outcome() == Some(true)).then_some(routine)
    };
    let chosen = rhs.each_ref().map(proven);
    let joint = match chosen.first() {
        Some(Some(Routine::FewRows)) => few_rows,
        Some(Some(Routine::ScalarFewRows)) => scalar_few_rows,
        _ => return rhs.map(|rhs| product(lhs.clone(), rhs, relaxed)),
    };
    if !(2..=3).contains(&N) || chosen.iter().any(|routine| *routine != chosen[0]) || !same_layout(&rhs) {
        return rhs.map(|rhs| product(lhs.clone(), rhs, relaxed));
    }
    let [m, _] = matrix(lhs.meta.shape());
    let out = rhs.each_ref().map(|rhs| empty(&lhs, [m, matrix(rhs.meta.shape())[1]], DType::F32));
    joint(lhs, &rhs, &out);
    out
}

/// Swap the last two dimensions without copying.
pub(crate) fn transposed(mut tensor: CubeTensor) -> CubeTensor {
    let dims = tensor.meta.num_dims();
    tensor.meta.swap(dims - 2, dims - 1);
    tensor
}

fn elems([lhs, rhs]: [DType; 2]) -> MatmulElems {
    MatmulElems::from_globals(&MatmulGlobalElems { lhs: elem(lhs), rhs: elem(rhs), out: elem(DType::F32) })
}

/// Rows and columns: the last two dimensions.
pub(super) fn matrix(shape: &[usize]) -> [usize; 2] {
    let dims = shape.len();
    [shape[dims - 2], shape[dims - 1]]
}

/// Whether the tensor is row-major, and the alignment of the lengths and strides of its lines.
fn layout(tensor: &CubeTensor) -> (bool, usize) {
    let dims = tensor.meta.num_dims();
    let (strides, shape) = (tensor.meta.strides(), tensor.meta.shape());
    let row_major = strides[dims - 1] <= strides[dims - 2];
    let (line, stride) =
        if row_major { (shape[dims - 1], strides[dims - 2]) } else { (shape[dims - 2], strides[dims - 1]) };
    (row_major, alignment(line).min(alignment(stride)))
}

/// The largest power of two, up to 16, that divides `size`.
fn alignment(size: usize) -> usize {
    1 << size.max(1).trailing_zeros().min(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Option<Cores>; 2] = [Some(Mma), Some(Cmma)];

    fn rule(m: usize, n: usize, k: usize, processor: bool, cores: [Option<Cores>; 2]) -> Vec<Routine> {
        routines(&ProductSpec {
            m,
            n,
            k,
            processor,
            cores,
            few_rows: false,
            scalar_few_rows: false,
            tilings: Vec::new(),
        })
    }

    #[test]
    fn the_last_resort_is_always_there_and_tensor_cores_only_where_they_are() {
        for (m, n, k) in [(1, 1, 1), (64, 896, 896), (8192, 4864, 896), (896, 4864, 8192)] {
            for (processor, cores) in [(false, ALL), (false, [None, Some(Cmma)]), (false, [None; 2]), (true, [None; 2])]
            {
                let order = rule(m, n, k, processor, cores);
                assert_eq!(order.last(), Some(&Routine::Naive));
                assert!(order.iter().filter_map(|routine| routine.cores()).all(|kind| cores.contains(&Some(kind))));
                assert_eq!(order.contains(&Routine::Processor), processor);
            }
        }
    }

    #[test]
    fn own_kernels_come_first_where_they_serve() {
        let first = |m, n, k| {
            let cores = ALL;
            let (few_rows, tilings) = (m <= 128, Tiling::ALL.to_vec());
            routines(&ProductSpec { m, n, k, processor: false, cores, few_rows, scalar_few_rows: m <= 64, tilings })[0]
        };
        assert_eq!(first(64, 4864, 896), Routine::Tiles(Tiling::Deep));
        assert_eq!(first(64, 896, 896), Routine::FewRows);
        assert_eq!(first(8192, 896, 896), Routine::Tiles(Tiling::Square));
        assert_eq!(first(1024, 64, 512), Routine::Tiles(Tiling::Narrow));
    }

    #[test]
    fn few_rows_without_tensor_cores_have_a_kernel_too() {
        let first = |m, cores| {
            let [few_rows, scalar_few_rows] = [false, m <= 64];
            let tilings = Vec::new();
            routines(&ProductSpec { m, n: 896, k: 896, processor: false, cores, few_rows, scalar_few_rows, tilings })[0]
        };
        assert_eq!(first(16, [None; 2]), Routine::ScalarFewRows);
        assert_eq!(first(16, [None, Some(Cmma)]), Routine::ScalarFewRows);
        assert_eq!(first(128, [None; 2]), Routine::Unit { large: true });
    }

    #[test]
    fn large_products_are_loaded_ahead() {
        assert_eq!(rule(8192, 4864, 896, false, ALL)[0], Routine::Ordered { cores: Mma, rows: 8 });
        assert_eq!(rule(64, 4864, 896, false, ALL)[0], Routine::Simple { cores: Mma, many_rows: false });
    }
}
