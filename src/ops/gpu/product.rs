//! Matrix products: the kernel for each, chosen by rule in the place of a tuner that compiles and times some twenty of them
//! for every shape. `tempering bench products` measures what the rule chooses from.

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
use super::tensor_cores::{Tiling, alike, few_rows, few_rows_serves, tiles, tilings};

/// A product as the rule sees it: `batch` times `[m, k]` and `[k, n]`.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// Whether the runtime's units are the cores of a processor.
    pub processor: bool,
    /// The tensor cores that take these formats, registers before fragments.
    pub cores: [Option<Cores>; 2],
    /// Whether [`Routine::FewRows`] serves it.
    pub few_rows: bool,
    /// How [`Routine::Tiles`] serves it.
    pub tilings: Vec<Tiling>,
}

impl Problem {
    pub(crate) fn of(lhs: &CubeTensor, rhs: &CubeTensor, relaxed: bool) -> Self {
        let client = &lhs.client;
        let [m, k] = matrix(lhs.meta.shape());
        let [_, n] = matrix(rhs.meta.shape());
        let exact = lhs.dtype == DType::F32 && !relaxed;
        let cores = if exact { [None; 2] } else { served(lhs, [lhs.dtype, rhs.dtype]) };
        Self {
            m,
            n,
            k,
            processor: client.properties().hardware.num_cpu_cores.is_some(),
            cores,
            few_rows: cores[1].is_some() && few_rows_serves(lhs, rhs),
            tilings: tilings(lhs, rhs),
        }
    }
}

/// The tensor cores that take these formats on the device of `like`, asked for once.
fn served(like: &CubeTensor, formats: [DType; 2]) -> [Option<Cores>; 2] {
    type Served = HashMap<(CubeDevice, [DType; 2]), [Option<Cores>; 2]>;
    static SERVED: Mutex<Option<Served>> = Mutex::new(None);
    let mut served = SERVED.lock().expect("no panic while it is held");
    let ask = || [Mma, Cmma].map(|cores| has(&like.client, cores, formats).then_some(cores));
    *served.get_or_insert_default().entry((like.device.clone(), formats)).or_insert_with(ask)
}

/// Whether the device has such an instruction for factors of these formats.
fn has(client: &Client, cores: Cores, formats: [DType; 2]) -> bool {
    let mut elems = elems(formats);
    // f32 becomes TF32 on tensor cores.
    adjust_dtypes(client, &mut elems, true);
    !cores.kind().supported_sizes(client, elems.lhs_register, elems.rhs_register, elems.acc_register).is_empty()
}

/// The rule: routines for a product, the first to be taken, the rest for where one cannot be set up or compiled.
pub(crate) fn routines(problem: &Problem) -> Vec<Routine> {
    let Problem { m, n, k, processor, cores: [registers, fragments], .. } = *problem;
    let mut order = Vec::new();
    if processor {
        // Made for processors; the units of the others wait for each other, which cores do badly.
        return vec![Routine::Processor, Routine::Gemm, Routine::Naive];
    }
    let own = |tiling: Tiling| problem.tilings.contains(&tiling).then_some(Routine::Tiles(tiling));
    // Decoding: the others have too few cubes to read the right factor at the card's speed (H100, 64 x 896 x 896: 30 us).
    let few = problem.few_rows.then_some(Routine::FewRows);
    if m <= 64 && n.max(k) >= 2048 {
        order.extend(own(Tiling::Deep));
        order.extend(own(Tiling::Few));
        order.extend(few);
    } else {
        order.extend(few);
        order.extend((n <= 64).then(|| own(Tiling::Narrow)).flatten());
        order.extend(own(Tiling::Square));
    }
    // Large enough to fill a card with tiles of 128 x 128, and long enough for loads to hide behind products.
    let large = m >= 512 && n >= 512 && k >= 128;
    if let (true, Some(cores)) = (large, registers.or(fragments)) {
        // Each left row is read once per plane and the loads of the next stage are hidden.
        order.push(Routine::Ordered { cores, rows: 8 });
        // The same without the order of rows, for layouts that the first does not take.
        order.push(Routine::Double { cores, specialized: false });
    }
    for cores in [registers, fragments].into_iter().flatten() {
        // A narrow or a short product: one stage, small tiles, so that there are enough of them. Registers are the quicker
        // of the two (H100, all shapes of decoding).
        order.push(Routine::Simple { cores, many_rows: m >= 512 });
    }
    // No tensor cores, or none for this.
    order.push(Routine::Unit { large: true });
    // What always works.
    order.push(Routine::Naive);
    order
}

/// What a routine's success depends on: it is tried once for each, and what fails is not tried again.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    routine: Routine,
    device: CubeDevice,
    dtypes: [DType; 2],
    /// Logarithms of m, n and k: tiles are chosen by size.
    sizes: [u32; 3],
    /// Whether each factor is read along its rows, and the number of elements, to 16, that its lines are multiples of.
    layouts: [(bool, usize); 2],
    /// The same of the result.
    width: usize,
}

static TRIED: Mutex<Option<HashMap<Key, bool>>> = Mutex::new(None);

/// `lhs · rhs`, sums and result in f32. Factors may be views with strides; those in f32 may be rounded to what tensor cores
/// take where the product is `relaxed`.
///
/// # Shapes
/// - lhs: `[.., m, k]`; rhs: `[.., k, n]`; output: `[.., m, n]`
pub(crate) fn product(lhs: CubeTensor, rhs: CubeTensor, relaxed: bool) -> CubeTensor {
    let problem = Problem::of(&lhs, &rhs, relaxed);
    let mut reasons = Vec::new();
    let layouts = [layout(&lhs), layout(&rhs)];
    for routine in routines(&problem) {
        let key = Key {
            routine,
            device: lhs.device.clone(),
            dtypes: [lhs.dtype, rhs.dtype],
            sizes: [problem.m, problem.n, problem.k].map(|size| (size.max(1) as u64).ilog2().min(13)),
            layouts,
            width: alignment(problem.n),
        };
        let known = TRIED.lock().expect("no panic while it is held").get_or_insert_default().get(&key).copied();
        if known == Some(false) {
            continue;
        }
        let result = launch(routine, lhs.clone(), rhs.clone()).and_then(|product| match known {
            Some(_) => Ok(product),
            // The first of its kind: whether it compiled is known when it has run.
            None => ran(&product).map(|()| product),
        });
        if result.is_err() {
            // What was never computed is no fault of the routine.
            for factor in [&lhs, &rhs] {
                ran(factor).unwrap_or_else(|reason| panic!("a factor of a matrix product was not computed: {reason}"));
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
    panic!("no routine computes the product {problem:?}: {}", reasons.join("; "))
}

/// Waits for a tensor, and says what failed on the way to it.
pub(crate) fn ran(tensor: &CubeTensor) -> Result<(), String> {
    block_on(tensor.client.sync_buffers([&tensor.handle])).map_err(|error| format!("{error:?}"))
}

/// The product by a given routine.
///
/// # Errors
/// Why the routine cannot be set up for this; a kernel that does not compile shows later, in [`ran`].
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
            Routine::Tiles(tiling) => tiles(lhs, rhs, product.clone(), tiling),
            _ => unreachable!("a routine of cubek"),
        }
        return Ok(product);
    };
    let client = lhs.client.clone();
    let mut elems = elems([lhs.dtype, rhs.dtype]);
    let [lhs, rhs] = [lhs, rhs].map(|factor| {
        let format = elem(factor.dtype);
        InputBinding::new(factor.binding(), format)
    });
    launch_ref(&strategy, &client, lhs, rhs, product.clone().binding(), &mut elems)
        .map_err(|error| error.to_string().trim().to_string())?;
    Ok(product)
}

/// Products of one left factor with one to three right ones, in f32: one launch where [`Routine::FewRows`] serves them all.
pub(crate) fn products<const N: usize>(lhs: CubeTensor, rhs: [CubeTensor; N], relaxed: bool) -> [CubeTensor; N] {
    let few = |rhs: &CubeTensor| routines(&Problem::of(&lhs, rhs, relaxed)).first() == Some(&Routine::FewRows);
    if N > 3 || N < 2 || !rhs.iter().all(few) || !alike(&rhs) {
        return rhs.map(|rhs| product(lhs.clone(), rhs, relaxed));
    }
    let [m, _] = matrix(lhs.meta.shape());
    let out = rhs.each_ref().map(|rhs| empty(&lhs, [m, matrix(rhs.meta.shape())[1]], DType::F32));
    few_rows(lhs, &rhs, &out);
    out
}

/// Swaps the last two dimensions; nothing is copied.
pub(crate) fn transposed(mut tensor: CubeTensor) -> CubeTensor {
    let dims = tensor.meta.num_dims();
    tensor.meta.swap(dims - 2, dims - 1);
    tensor
}

fn elems([lhs, rhs]: [DType; 2]) -> MatmulElems {
    MatmulElems::from_globals(&MatmulGlobalElems { lhs: elem(lhs), rhs: elem(rhs), out: elem(DType::F32) })
}

/// Rows and columns.
pub(super) fn matrix(shape: &[usize]) -> [usize; 2] {
    let dims = shape.len();
    [shape[dims - 2], shape[dims - 1]]
}

/// Whether the last dimension is the one without gaps, and what the lines are multiples of.
fn layout(tensor: &CubeTensor) -> (bool, usize) {
    let dims = tensor.meta.num_dims();
    let (strides, shape) = (tensor.meta.strides(), tensor.meta.shape());
    let by_rows = strides[dims - 1] <= strides[dims - 2];
    let (line, stride) =
        if by_rows { (shape[dims - 1], strides[dims - 2]) } else { (shape[dims - 2], strides[dims - 1]) };
    (by_rows, alignment(line).min(alignment(stride)))
}

/// The largest power of two that divides `size`, to 16.
fn alignment(size: usize) -> usize {
    1 << size.max(1).trailing_zeros().min(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Option<Cores>; 2] = [Some(Mma), Some(Cmma)];

    fn rule(m: usize, n: usize, k: usize, processor: bool, cores: [Option<Cores>; 2]) -> Vec<Routine> {
        routines(&Problem { m, n, k, processor, cores, few_rows: false, tilings: Vec::new() })
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
            routines(&Problem { m, n, k, processor: false, cores, few_rows: m <= 128, tilings: Tiling::ALL.to_vec() })
                [0]
        };
        assert_eq!(first(64, 4864, 896), Routine::Tiles(Tiling::Deep));
        assert_eq!(first(64, 896, 896), Routine::FewRows);
        assert_eq!(first(8192, 896, 896), Routine::Tiles(Tiling::Square));
        assert_eq!(first(1024, 64, 512), Routine::Tiles(Tiling::Narrow));
    }

    #[test]
    fn large_products_are_loaded_ahead() {
        assert_eq!(rule(8192, 4864, 896, false, ALL)[0], Routine::Ordered { cores: Mma, rows: 8 });
        assert_eq!(rule(64, 4864, 896, false, ALL)[0], Routine::Simple { cores: Mma, many_rows: false });
    }
}
