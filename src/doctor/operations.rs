//! Operations that the self-check computes on the device and on the CPU.

use burn::tensor::activation::{log_softmax, sigmoid, softmax};
use burn::tensor::{Bool, Device, FloatDType, IndexingUpdateOp, Int, Tensor, TensorData};
use half::bf16;

use super::check::AddCheck;
use super::small;
use crate::generate::{Distribution, draw};
use crate::model::Precision;
use crate::noise::{self, Stream};
use crate::ops::delta::{DeltaHeads, DeltaInputs, StateMove, causal_conv, delta_rule, delta_rule_cached};
use crate::ops::update::{self, AdamWStep};
use crate::ops::{self, CacheCall, to_host};

/// Return a predicate: whether a device is the reference that `checked` is compared with.
fn is_reference(checked: &Device) -> impl Fn(&Device) -> bool + Copy + use<> {
    let host = ops::is_host(checked);
    move |device| ops::is_host(device) != host
}

/// Add checks of matrix products in f32 and in `precision`.
pub(super) fn products(check: AddCheck, device: &Device, precision: Precision, product: f32) {
    for [m, k, n] in [[1, 256, 384], [20, 1028, 100], [33, 65, 17], [128, 128, 512]] {
        check(
            &format!("matrix product {m} x {k} x {n}"),
            product,
            Box::new(move |device| {
                vec![to_host(ops::matmul::<2>(random([m, k], 1, device), random([k, n], 2, device)))]
            }),
        );
    }
    for (name, m, n) in [("transposed", 70, 90), ("few rows, transposed", 37, 92)] {
        check(
            &format!("matrix product, {name}"),
            product,
            Box::new(move |device| {
                vec![to_host(ops::matmul::<2>(random([m, 48], 1, device), random([n, 48], 2, device).transpose()))]
            }),
        );
    }
    check(
        "matrix product, batched",
        product,
        Box::new(|device| {
            let (a, b): (Tensor<4>, Tensor<4>) = (random([3, 2, 9, 16], 1, device), random([3, 2, 16, 33], 2, device));
            vec![to_host(ops::matmul(a, b))]
        }),
    );
    if precision != Precision::F32 {
        let is_reference = is_reference(device);
        let name = format!("matrix product in {}", format!("{precision:?}").to_lowercase());
        check(
            &name,
            2e-2,
            Box::new(move |device| {
                // The reference is the f32 product, not one that is rounded differently.
                let precision = if is_reference(device) { Precision::F32 } else { precision };
                let (x, weight) = (random([64, 128], 1, device), random([128, 96], 2, device));
                vec![to_host(ops::linear(x, weight, None, precision.dtype()))]
            }),
        );
    }
}

/// Add checks of linear layers and attention with their gradients.
pub(super) fn layers(check: AddCheck, device: &Device, product: f32) {
    let is_reference = is_reference(device);
    // Inputs are exact in bf16: results differ only by summation order and by the rounding of tensor cores.
    let formats = [FloatDType::F32, FloatDType::BF16];
    // Compositions of tensor operations also round results to bf16: excluded here, see `products`.
    let own = ops::is_host(device) || ops::is_gpu(device);
    let whole = |format: &FloatDType| *format == FloatDType::F32 || own && device.supports_dtype(*format);
    for format in formats.into_iter().filter(whole) {
        let name = if format == FloatDType::F32 { "f32" } else { "bf16" };
        let tolerance = if format == FloatDType::F32 { product } else { 1e-4 };
        for [rows, input, output] in [
            [1, 33, 98],
            [7, 320, 513],
            [16, 64, 48],
            [37, 98, 33],
            [48, 2080, 64],
            [64, 304, 160],
            [130, 64, 192],
            [600, 256, 513],
        ] {
            check(
                &format!("linear layer {rows} x {input} x {output} in {name}, with gradients"),
                tolerance,
                Box::new(move |device| {
                    let format = if is_reference(device) { FloatDType::F32 } else { format };
                    let inputs = [vec![rows, input], vec![input, output], vec![output]];
                    layer_gradients(&inputs, device, |[x, weight, bias]| {
                        let (x, weight) = (x.reshape([rows, input]), weight.reshape([input, output]));
                        ops::linear(x, weight, Some(bias), format)
                    })
                }),
            );
        }
        check(
            &format!("products with a shared operand in {name}"),
            tolerance,
            Box::new(move |device| shared(device, format)),
        );
        check(
            &format!("tied head in {name}, with gradients"),
            tolerance,
            Box::new(move |device| {
                let format = if is_reference(device) { FloatDType::F32 } else { format };
                layer_gradients(&[vec![37, 33], vec![98, 33]], device, |[x, weight]| {
                    ops::matmul_transposed(x.reshape([37, 33]), weight.reshape([98, 33]), format)
                })
            }),
        );
    }
    let shapes = [(16, vec![20, 1, 32]), (7, vec![33, 70]), (4, vec![1030, 3])].map(|shape| (shape, FloatDType::F32));
    // Widths are multiples of the vector size. Attention weights are rounded to bf16, hence the large tolerance.
    let short = [(16, vec![20, 1, 32]), (64, vec![300, 8, 150])].map(|shape| (shape, FloatDType::BF16));
    for ((dim, lengths), format) in shapes.into_iter().chain(short).filter(|(_, format)| whole(format)) {
        let (name, tolerance) = if format == FloatDType::F32 { ("f32", product.max(5e-5)) } else { ("bf16", 3e-2) };
        check(
            &format!("attention over {lengths:?}, {dim} wide, in {name}, with gradients"),
            tolerance,
            Box::new(move |device| {
                let format = if is_reference(device) { FloatDType::F32 } else { format };
                let rows = lengths.iter().sum();
                let inputs = [vec![rows, 4, dim], vec![rows, 2, dim], vec![rows, 2, dim]];
                layer_gradients(&inputs, device, |[q, k, v]| {
                    let heads = |x: Tensor<1>, heads: usize| x.reshape([rows, heads, dim]);
                    ops::attention(heads(q, 4), heads(k, 2), heads(v, 2), &lengths, None, format)
                })
            }),
        );
    }
}

/// Compute two and then three matrix products with the same left-hand operand.
fn shared(device: &Device, format: FloatDType) -> Vec<Vec<f32>> {
    let halves = |shape: [usize; 2], key: u64| {
        let values = to_host(random::<2>(shape, key, &Device::flex())).into_iter().map(|x| bf16::from_f32(x).to_f32());
        Tensor::<2>::from_data(TensorData::new(values.collect(), shape), device)
    };
    let x = halves([32, 80], 60);
    let weights = [[80, 48], [80, 16], [80, 112]].map(|shape| halves(shape, 61 + shape[1] as u64));
    let product =
        |weights: &[Tensor<2>]| weights.iter().map(|w| to_host(x.clone().matmul(w.clone()))).collect::<Vec<_>>();
    if !ops::is_gpu(device) {
        return [product(&weights[..2]), product(&weights)].concat();
    }
    let [first, second, _] = weights.clone();
    // Products share a launch from the second time on.
    let _ = ops::products(x.clone(), weights.clone(), format).map(to_host);
    let two = ops::products(x.clone(), [first, second], format).map(to_host);
    let three = ops::products(x.clone(), weights, format).map(to_host);
    two.into_iter().chain(three).collect()
}

/// Return the value of `f` and the gradients of its inputs for a random upstream gradient. `f` gets its inputs
/// flattened. Inputs and upstream gradient are exact in bf16.
fn layer_gradients<const N: usize>(
    shapes: &[Vec<usize>; N],
    device: &Device,
    f: impl Fn([Tensor<1>; N]) -> Tensor<2>,
) -> Vec<Vec<f32>> {
    let rounded = |count: usize, key: u64, device: &Device| {
        let mut stream = Stream::new(&[0xD0C, key]);
        let values: Vec<f32> = (0..count).map(|_| bf16::from_f64(stream.unit() * 4.0 - 2.0).to_f32()).collect();
        Tensor::<1>::from_data(TensorData::new(values, [count]), device)
    };
    let device = device.clone().autodiff();
    let inputs: [Tensor<1>; N] =
        std::array::from_fn(|i| rounded(shapes[i].iter().product(), 50 + i as u64, &device).require_grad());
    let value = f(inputs.clone());
    let [rows, width] = value.dims();
    let upstream = rounded(rows * width, 60, &device).reshape([rows, width]);
    let found = (value.clone() * upstream).sum().backward();
    let gradients = inputs.map(|input| to_host(input.grad(&found).expect("each input has a gradient")));
    std::iter::once(to_host(value.inner())).chain(gradients).collect()
}

/// Add checks of Burn's tensor operations.
pub(super) fn plain_operations(check: AddCheck, plain: f32) {
    check(
        "sums and means",
        plain,
        Box::new(|device| {
            let x: Tensor<2> = random([57, 130], 3, device);
            vec![to_host(x.clone().sum_dim(1)), to_host(x.clone().mean_dim(0)), to_host(x.sum().reshape([1]))]
        }),
    );
    check("running sums", plain, Box::new(|device| vec![to_host(random::<2>([5, 300], 4, device).abs().cumsum(1))]));
    check(
        "masked softmax",
        plain,
        Box::new(|device| {
            let x: Tensor<2> = random([19, 70], 5, device).mul_scalar(8.0);
            let mask = Tensor::<2, Bool>::tril_mask([19, 70], 0, device);
            let masked = softmax(x.clone().mask_fill(mask, f32::NEG_INFINITY), 1);
            vec![to_host(masked), to_host(log_softmax(x, 1))]
        }),
    );
    check("gather and scatter of rows", 0.0, Box::new(rows));
}

/// Add checks of the operations of [`ops`](crate::ops).
pub(super) fn own_operations(check: AddCheck, plain: f32) {
    gradients(check, "RMS norm", plain, |device| {
        let of = |rows, width| {
            let (x, weight) = (leaf([rows, width], 6, device), leaf([width], 7, device));
            (ops::rms_norm(x.1, weight.1, 1e-6), vec![x.0, weight.0])
        };
        vec![of(40, 96), of(1, 33), of(13, 98)]
    });
    gradients(check, "gated linear unit", plain, |device| {
        let of = |rows, width| {
            let (gate, up) = (leaf([rows, width], 8, device), leaf([rows, width], 9, device));
            (ops::swiglu(gate.1.mul_scalar(4.0), up.1), vec![gate.0, up.0])
        };
        vec![of(31, 160), of(1, 33), of(5, 98)]
    });
    gradients(check, "gated linear unit and product", plain, |device| {
        let (gate, up) = (leaf([9, 48], 60, device), leaf([9, 48], 61, device));
        let (weight, bias) = (leaf([48, 33], 62, device), leaf([33], 63, device));
        vec![(
            ops::swiglu_linear(gate.1, up.1, weight.1, Some(bias.1), FloatDType::F32),
            vec![gate.0, up.0, weight.0, bias.0],
        )]
    });
    gradients(check, "rotary positions", plain, |device| {
        let of = |rows: usize, heads, half: usize| {
            // Cosines and sines are computed on the host, as in the model.
            let angles = |f: fn(f32) -> f32| {
                let values: Vec<f32> = (0..rows * half).map(|i| f(i as f32 * 1.7)).collect();
                Tensor::<2>::from_data(TensorData::new(values, [rows, half]), &device.clone().inner())
            };
            let (cos, sin) = (angles(f32::cos), angles(f32::sin));
            let x = leaf([rows, heads, 2 * half], 11, device);
            let rotated = ops::rotary(x.1.mul_scalar(2.0), &Tensor::from_inner(cos), &Tensor::from_inner(sin));
            (rotated.reshape([rows, heads * 2 * half]), vec![x.0])
        };
        vec![of(11, 3, 8), of(1, 1, 33), of(6, 5, 49)]
    });
    check(
        "attention",
        plain,
        Box::new(|device| {
            let [q, k, v] = [(4, 12), (2, 13), (2, 14)].map(|(heads, key)| random([53, heads, 16], key, device));
            vec![to_host(ops::attention(q, k, v, &[20, 1, 32], None, FloatDType::F32))]
        }),
    );
    check("attention with a cache", plain, Box::new(cached_attention));
    gradients(check, "log-probabilities and entropies", plain, |device| {
        let of = |rows: usize, vocab: usize, temperature: f32| {
            let targets: Vec<u32> = (0..rows).map(|row| (row * 37 % vocab) as u32).collect();
            let logits = leaf([rows, vocab], 15, device);
            // The logits' memory may be reused for the gradient, except where it is the leaf's (at temperature 1).
            let own = if temperature == 1.0 { logits.1 } else { logits.1.mul_scalar(3.0) };
            let scores = ops::scores(own, &targets, temperature);
            let figures = [scores.log_prob, scores.entropy_sampling, scores.entropy, scores.collision];
            (Tensor::stack(figures.to_vec(), 0), vec![logits.0])
        };
        vec![of(23, 301, 0.8), of(7, 33, 1.0), of(1, 98, 1.3), of(2, 151_936, 0.6)]
    });
    check(
        "a given gradient",
        0.0,
        Box::new(|device| {
            let device = device.clone().autodiff();
            let (x, view): (Tensor<1>, Tensor<2>) = leaf([5, 33], 16, &device);
            let upstream = random([5, 33], 17, &device.inner());
            let gradients = ops::seed(view.mul_scalar(2.0), upstream).backward();
            vec![to_host(x.grad(&gradients).expect("the input has a gradient"))]
        }),
    );
}

/// Add checks of Gated DeltaNet: its convolution and its recurrence, on packed sequences and with cached states.
pub(super) fn recurrence(check: AddCheck, plain: f32) {
    gradients(check, "short convolution", plain, |device| {
        let (x, weight) = (leaf([45, 33], 70, device), leaf([33, 4], 71, device));
        vec![(causal_conv(x.1, weight.1, &[20, 1, 24]), vec![x.0, weight.0])]
    });
    let heads = DeltaHeads { keys: 2, values: 4, key_dim: 16, value_dim: 40 };
    let inputs = move |rows: usize, device: &Device| {
        let widths = [32, 32, 160, 4, 4];
        let leaves: [_; 5] = std::array::from_fn(|i| leaf([rows, widths[i]], 72 + i as u64, device));
        let [q, k, v, decay, beta] = leaves.each_ref().map(|(_, view)| view.clone());
        let (q, k, beta) = (q.mul_scalar(0.2), k.mul_scalar(0.2), sigmoid(beta));
        let inputs = DeltaInputs { q, k, v, decay: decay.mul_scalar(0.2) - 0.45, beta };
        (inputs, leaves.map(|(leaf, _)| leaf).to_vec())
    };
    gradients(check, "gated delta rule", 5.0 * plain, move |device| {
        let (inputs, leaves) = inputs(53, device);
        vec![(delta_rule(inputs, &[20, 1, 32], heads), leaves)]
    });
    let cached = move |device: &Device| {
        let step = |from, to| StateMove { from, to };
        let (first, _) = inputs(21, device);
        let (next, _) = inputs(3, device);
        let table = random([6, heads.state()], 78, device);
        let (read, table) = delta_rule_cached(first, table, &[20, 1], &[step(None, 0), step(None, 1)], heads);
        // Two continuations of the first sequence and one of the second.
        let moves = [step(Some(0), 2), step(Some(1), 4), step(Some(0), 3)];
        let (out, table) = delta_rule_cached(next, table, &[1; 3], &moves, heads);
        vec![to_host(read), to_host(out), to_host(table)]
    };
    check("gated delta rule with a cache", 5.0 * plain, Box::new(cached));
}

/// Results of an operation with the autodiff leaves they are computed from.
type Recorded = Vec<(Tensor<2>, Vec<Tensor<1>>)>;

/// Add a check of results, of leaf gradients for random upstream gradients, and that the leaves are unchanged.
fn gradients(check: AddCheck, operation: &str, tolerance: f32, results: impl Fn(&Device) -> Recorded + 'static) {
    let compute = move |device: &Device| {
        let mut found = Vec::new();
        for (result, leaves) in results(&device.clone().autodiff()) {
            let upstream: Tensor<2> = random(result.dims(), 99, &result.device());
            let gradients = (result.clone() * upstream).sum().backward();
            found.push(to_host(result.inner()));
            for leaf in leaves {
                found.push(to_host(leaf.grad(&gradients).expect("a leaf has a gradient")));
                found.push(to_host(leaf.inner()));
            }
        }
        found
    };
    check(operation, tolerance, Box::new(compute));
}

/// Return a random leaf of rank 1, so that all leaves have the same type, and its view with the given shape.
fn leaf<const D: usize>(shape: [usize; D], key: u64, device: &Device) -> (Tensor<1>, Tensor<D>) {
    let flat = random([shape.iter().product()], key, device);
    let flat = if device.is_autodiff() { flat.require_grad() } else { flat };
    (flat.clone(), flat.reshape(shape))
}

/// Add checks of operations on gradients and weights.
pub(super) fn updates(check: AddCheck, device: &Device, plain: f32) {
    check(
        "sums of gradients",
        plain,
        Box::new(|device| vec![to_host(update::accumulate(random([3_234], 50, device), random([3_234], 51, device)))]),
    );
    check("rows added to a table", plain, Box::new(added_rows));
    check(
        "global norm of gradients",
        plain,
        Box::new(|device| {
            let parts = [1, 3_234, 70_001, 8].map(|count| random::<1>([count], 52, device));
            vec![vec![update::sum_of_squares(&parts.each_ref()).sqrt() as f32]]
        }),
    );
    check("AdamW, for various numbers of weights", plain, Box::new(|device| adamw(device, FloatDType::F32)));
    if device.supports_dtype(FloatDType::BF16) {
        // One unit in the last place of an 8-bit mantissa: two sums may round to different neighbours.
        check("AdamW with moments in bf16", 1.0 / 128.0, Box::new(|device| adamw(device, FloatDType::BF16)));
    }
}

/// Return values in ±2 that are the same on every device.
fn random<const D: usize>(shape: [usize; D], key: u64, device: &Device) -> Tensor<D> {
    let mut stream = Stream::new(&[0xD0C, key]);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| (stream.unit() * 4.0 - 2.0) as f32).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// Return the bits of sampling noise after a round trip to the device, as two 16-bit halves, which f32 holds exactly.
pub(super) fn noise_bits(device: &Device) -> Vec<Vec<f32>> {
    let uniforms: Vec<f32> = (0..1000).map(|i| noise::uniform(&[0xD0C, i])).collect();
    let tensor: Tensor<1> = Tensor::from_data(TensorData::from(uniforms.as_slice()), device);
    let bits: Vec<u32> = to_host(tensor).into_iter().map(f32::to_bits).collect();
    vec![
        bits.iter().map(|bits| (bits >> 16) as f32).collect(),
        bits.iter().map(|bits| (bits & 0xFFFF) as f32).collect(),
    ]
}

fn indices(values: &[i64], device: &Device) -> Tensor<1, Int> {
    Tensor::from_data(TensorData::from(values), device)
}

/// Select, gather, assign and add rows and entries, some of them twice.
fn rows(device: &Device) -> Vec<Vec<f32>> {
    let whole = |shape: [usize; 2], key: u64| random::<2>(shape, key, device).mul_scalar(64.0).round();
    let table = whole([50, 24], 20);
    let picks = [49, 0, 7, 7, 31];
    let entries: Vec<i64> = (0..50).map(|row| row * 5 % 24).collect();
    let picked = table.clone().select(0, indices(&picks, device));
    let gathered = table.clone().gather(1, indices(&entries, device).reshape([50, 1]));
    let written =
        table.clone().select_assign(0, indices(&[3, 49, 10], device), whole([3, 24], 21), IndexingUpdateOp::Assign);
    let added = table.select_assign(0, indices(&picks, device), whole([5, 24], 22), IndexingUpdateOp::Add);
    [picked, gathered, written, added].map(to_host).to_vec()
}

/// Add rows to tables of odd widths; some rows of a table get many, others none.
fn added_rows(device: &Device) -> Vec<Vec<f32>> {
    let table = |[height, width, count]: [usize; 3]| {
        let at: Vec<u32> = (0..count).map(|row| (row * row % (height - 2)) as u32).collect();
        let rows = random([count, width], 54, device);
        to_host(update::add_rows(random([height, width], 53, device), rows, &at))
    };
    [[9, 33, 70], [50, 98, 3], [5, 300, 1]].map(table).to_vec()
}

/// Return weights and moments after three AdamW steps, for counts that are and are not multiples of the vector size.
fn adamw(device: &Device, moments: FloatDType) -> Vec<Vec<f32>> {
    let trained = |count: usize| {
        let mut value = random([count], 55, device);
        let mut state = [(); 2].map(|()| Tensor::<1>::zeros([count], device).cast(moments));
        for t in 1..=3 {
            let step = AdamWStep {
                scale: 0.7,
                beta1: 0.9,
                beta2: 0.95,
                epsilon: 1e-8,
                rate: 1e-2 / (1.0 - 0.9f32.powi(t)),
                correction: 1.0 / (1.0 - 0.95f32.powi(t)),
                keep: 0.999,
            };
            // Gradients are kept away from zero, where rounding would decide their sign.
            let gradient = random([count], 55 + t as u64, device).add_scalar(2.5);
            (value, state) = update::adamw(value, state, gradient, &step);
        }
        [value].into_iter().chain(state).map(|x| to_host(x.cast(FloatDType::F32)))
    };
    [3, 3_235, 4_096].into_iter().flat_map(trained).collect()
}

/// Compute cached attention of one decoded token each for two completions of a prompt and one of another prompt.
fn cached_attention(device: &Device) -> Vec<Vec<f32>> {
    let spans = vec![[0..3, 10..14], [0..3, 15..16], [4..9, 20..22]];
    let call = CacheCall::new(spans.iter().map(|[_, own]| own.end - 1).collect(), spans);
    let table = |key| ops::write_rows(random([25, 32], key, device), random([3, 32], key + 1, device), &call);
    let (keys, values) = (table(30), table(32));
    vec![to_host(ops::attention_cached(random([3, 4, 16], 34, device), &keys, &values, &call)), to_host(keys)]
}

/// Return 1 for each logit and gradient that a second run reproduces bit for bit, else 0.
pub(super) fn again(device: &Device) -> Vec<f32> {
    let run = || [small::decoded(device), small::gradient(device)].concat().concat();
    run().into_iter().zip(run()).map(|(a, b)| if a.to_bits() == b.to_bits() { 1.0 } else { 0.0 }).collect()
}

/// Draw tokens from vocabularies of several sizes.
pub(super) fn tokens(device: &Device) -> Vec<Vec<f32>> {
    [(40, 64), (9, 33), (5, 98), (3, 151_936)].map(|(rows, vocab)| tokens_of(rows, vocab, device)).concat()
}

/// Draw tokens at the middle of their intervals of the cumulative distribution: rounding cannot select another.
fn tokens_of(rows: usize, vocab: usize, device: &Device) -> Vec<Vec<f32>> {
    let temperature = 0.9f32;
    let logits: Tensor<2> = random([rows, vocab], 40, device).mul_scalar(if vocab > 1000 { 8.0 } else { 1.0 });
    let middle = |(row, logits): (usize, &[f32])| {
        let weights: Vec<f64> = logits.iter().map(|z| f64::from(z / temperature).exp()).collect();
        // In a large vocabulary, only a likely token has an interval wider than the rounding error.
        let large = (0..vocab).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap_or(0);
        let token = if vocab > 1000 { large } else { row * 29 % vocab };
        let before: f64 = weights[..token].iter().sum();
        ((before + weights[token] / 2.0) / weights.iter().sum::<f64>()) as f32
    };
    let uniforms: Vec<f32> = to_host(logits.clone()).chunks(vocab).enumerate().map(middle).collect();
    let drawn = draw(logits, &Distribution::at(temperature), &uniforms, &vec![[&[][..], &[]]; rows]);
    vec![
        drawn.iter().map(|drawn| drawn.token as f32).collect(),
        drawn.iter().map(|drawn| drawn.log_prob).collect(),
        drawn.iter().map(|drawn| drawn.sampling_entropy).collect(),
    ]
}
