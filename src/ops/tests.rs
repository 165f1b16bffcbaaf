use super::*;
use crate::noise::Stream;

fn random<const D: usize>(shape: [usize; D], seed: u64, device: &Device) -> Tensor<D> {
    let mut random = Stream::new(&[seed]);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| (random.unit() * 4.0 - 2.0) as f32).collect();
    let tensor = Tensor::from_data(TensorData::new(values, shape), device);
    if device.is_autodiff() { tensor.require_grad() } else { tensor }
}

/// Compare the value and gradients of `f`, under a random upstream gradient, between fused and plain operations.
fn compare<const D: usize>(f: impl Fn(&Device) -> (Tensor<D>, Vec<Tensor<1>>)) {
    let device = Device::flex().autodiff();
    let [fused, plain] = both(|| {
        let (out, inputs) = f(&device);
        let shape: [usize; D] = out.dims();
        let upstream = random(shape, 99, &device).detach();
        let gradients = (out.clone() * upstream).sum().backward();
        let gradients: Vec<Vec<f32>> =
            inputs.iter().map(|x| to_host(x.grad(&gradients).expect("input has a gradient"))).collect();
        (to_host(out.inner()), gradients)
    });
    close(&fused.0, &plain.0, "value");
    for (index, (fused, plain)) in fused.1.iter().zip(&plain.1).enumerate() {
        close(fused, plain, &format!("gradient of input {index}"));
    }
}

fn close(a: &[f32], b: &[f32], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!((a - b).abs() <= 2e-5 * (1.0 + b.abs()), "{what} at {i}: {a} against {b}");
    }
}

/// Return a leaf of rank 1, so that the gradients of all inputs have one type, and its reshaped view.
fn leaf<const D: usize>(shape: [usize; D], seed: u64, device: &Device) -> (Tensor<1>, Tensor<D>) {
    let flat = random([shape.iter().product()], seed, device);
    (flat.clone(), flat.reshape(shape))
}

#[test]
fn rms_norm_fused_equals_plain() {
    for (rows, width) in [(1, 1), (3, 17), (300, 64)] {
        compare(|device| {
            let (x, x_view) = leaf([rows, width], 1, device);
            let (w, w_view) = leaf([width], 2, device);
            (rms_norm(x_view, w_view, 1e-6), vec![x, w])
        });
    }
}

#[test]
fn swiglu_fused_equals_plain() {
    compare(|device| {
        let (gate, gate_view) = leaf([37, 129], 1, device);
        let (up, up_view) = leaf([37, 129], 2, device);
        (swiglu(gate_view.mul_scalar(10.0), up_view), vec![gate, up])
    });
}

#[test]
fn geglu_fused_equals_plain() {
    compare(|device| {
        let (gate, gate_view) = leaf([37, 129], 1, device);
        let (up, up_view) = leaf([37, 129], 2, device);
        (geglu(gate_view.mul_scalar(4.0), up_view), vec![gate, up])
    });
    // 0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³))), computed in f64.
    let gate = [-3.0f32, -0.5, 0.0, 1e-3, 0.7, 9.0];
    let inner = |x: f64| (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
    let expected = gate.map(|x| (0.5 * f64::from(x) * (1.0 + inner(x.into()).tanh())) as f32);
    let device = Device::flex().autodiff();
    both(|| {
        let row = |values: [f32; 6]| Tensor::from_data(TensorData::new(values.to_vec(), [1, 6]), &device);
        close(&to_host(geglu(row(gate), row([1.0; 6])).inner()), &expected, "gelu");
    });
}

#[test]
fn a_part_of_a_head_rotates_and_the_rest_stays() {
    compare(|device| {
        let (x, x_view) = leaf([11, 3, 10], 1, device);
        let angles = random([11, 3], 2, device).detach();
        (rotary(x_view, &angles.clone().cos(), &angles.sin()), vec![x])
    });
    let device = Device::flex().autodiff();
    both(|| {
        let x: Tensor<3> = random([4, 2, 10], 1, &device);
        let angles: Tensor<2> = random([4, 3], 2, &device);
        let (cos, sin) = (angles.clone().cos(), angles.sin());
        let whole = rotary(x.clone(), &cos, &sin);
        let rest = |x: Tensor<3>| to_host(x.narrow(2, 6, 4).inner());
        assert_eq!(rest(whole.clone()), rest(x.clone()));
        let part = rotary(x.narrow(2, 0, 6), &cos, &sin);
        assert_eq!(to_host(whole.narrow(2, 0, 6).inner()), to_host(part.inner()));
    });
}

#[test]
fn linear_fused_equals_plain_with_and_without_bias() {
    for (rows, input, output) in [(1, 1, 1), (5, 17, 33), (300, 64, 48)] {
        compare(|device| {
            let (x, x_view) = leaf([rows, input], 1, device);
            let (weight, weight_view) = leaf([input, output], 2, device);
            let (bias, bias_view) = leaf([output], 3, device);
            (linear(x_view, weight_view, Some(bias_view), FloatDType::F32), vec![x, weight, bias])
        });
        compare(|device| {
            let (x, x_view) = leaf([rows, input], 1, device);
            let (weight, weight_view) = leaf([input, output], 2, device);
            (linear(x_view, weight_view, None, FloatDType::F32), vec![x, weight])
        });
    }
}

#[test]
fn swiglu_linear_fused_equals_plain_with_and_without_bias() {
    for (rows, inner, output) in [(1, 1, 1), (5, 17, 33), (300, 96, 48)] {
        for with_bias in [false, true] {
            compare(|device| {
                let (gate, gate_view) = leaf([rows, inner], 1, device);
                let (up, up_view) = leaf([rows, inner], 2, device);
                let (weight, weight_view) = leaf([inner, output], 3, device);
                let (bias, bias_view) = leaf([output], 4, device);
                let out =
                    swiglu_linear(gate_view, up_view, weight_view, with_bias.then_some(bias_view), FloatDType::F32);
                let mut inputs = vec![gate, up, weight];
                inputs.extend(with_bias.then_some(bias));
                (out, inputs)
            });
        }
    }
}

#[test]
fn matmul_transposed_equals_the_product_with_the_transpose() {
    for (rows, hidden, vocab) in [(1, 1, 1), (5, 17, 33)] {
        compare(|device| {
            let (x, x_view) = leaf([rows, hidden], 1, device);
            let (weight, weight_view) = leaf([vocab, hidden], 2, device);
            (matmul_transposed(x_view, weight_view, FloatDType::F32), vec![x, weight])
        });
    }
}

/// Sizes on both sides of the kernel thresholds, with partial groups of columns and depth, and a weight converted in
/// two parts.
#[test]
fn products_with_weights_in_16_and_32_bits_equal_the_plain_ones() {
    let device = Device::flex();
    for rows in [1, 2, 3, 7, 16, 17, 64, 65] {
        for (input, output) in [(64, 64), (67, 97), (260, 200), (300, 1000), (1100, 1000), (5, 70), (70, 5)] {
            // Small values, so that sums of a thousand products in different orders stay within the tolerance.
            let x: Tensor<2> = random([rows, input], 1, &device).mul_scalar(0.1);
            let bias: Tensor<1> = random([output], 2, &device);
            for format in [DType::F32, DType::BF16] {
                let weight = |shape| random::<2>(shape, 3, &device).cast(DType::BF16).cast(format);
                let [fused, plain] = both(|| {
                    let bias = Some(bias.clone());
                    let products = [
                        linear(x.clone(), weight([input, output]), bias, FloatDType::F32),
                        matmul_transposed(x.clone(), weight([output, input]), FloatDType::F32),
                    ];
                    products.map(to_host)
                });
                for (fused, plain) in fused.iter().zip(&plain) {
                    close(fused, plain, &format!("{rows} x {input} x {output} in {format:?}"));
                }
            }
        }
    }
}

/// A completion must not depend on the other rows of its batch.
#[test]
fn a_row_of_a_product_does_not_depend_on_the_rows_beside_it() {
    let device = Device::flex();
    for (format, by_columns) in [(DType::F32, 16), (DType::BF16, 64)] {
        let weight = |shape| random::<2>(shape, 3, &device).cast(format);
        let (weight, transposed) = (weight([300, 500]), weight([500, 300]));
        let linear = |x| linear(x, weight.clone(), None, FloatDType::F32);
        let by_columns_of = |x| matmul_transposed(x, transposed.clone(), FloatDType::F32);
        let check = |rows: usize, product: &dyn Fn(Tensor<2>) -> Tensor<2>| {
            let x: Tensor<2> = random([rows, 300], 1, &device);
            let together = to_host(product(x.clone()));
            let alone: Vec<f32> = (0..rows).flat_map(|row| to_host(product(x.clone().narrow(0, row, 1)))).collect();
            assert!(together == alone, "{rows} rows in {format:?}");
        };
        check(64, &linear);
        check(by_columns, &by_columns_of);
    }
}

#[test]
fn a_frozen_weight_in_16_bits_hands_gradients_on() {
    for rows in [5, 100] {
        let device = Device::flex().autodiff();
        let weight = |shape: [usize; 2]| {
            let weight: Tensor<2> = random(shape, 3, &device.clone().inner());
            Tensor::from_inner(weight.cast(DType::BF16))
        };
        compare(|device| {
            let (x, x_view) = leaf([rows, 67], 1, device);
            (linear(x_view, weight([67, 97]), None, FloatDType::F32), vec![x])
        });
        compare(|device| {
            let (x, x_view) = leaf([rows, 67], 1, device);
            (matmul_transposed(x_view, weight([97, 67]), FloatDType::F32), vec![x])
        });
        compare(|device| {
            let (gate, gate_view) = leaf([rows, 67], 1, device);
            let (up, up_view) = leaf([rows, 67], 2, device);
            (swiglu_linear(gate_view, up_view, weight([67, 97]), None, FloatDType::F32), vec![gate, up])
        });
    }
}

#[test]
fn a_seeded_backward_pass_goes_on_from_the_given_gradient() {
    let device = Device::flex().autodiff();
    both(|| {
        let x: Tensor<2> = random([3, 5], 1, &device);
        let upstream: Tensor<2> = random([3, 5], 2, &device.clone().inner());
        let gradients = seed(x.clone().mul_scalar(2.0), upstream.clone()).backward();
        let expected = to_host(upstream.mul_scalar(2.0));
        close(&to_host(x.grad(&gradients).unwrap()), &expected, "gradient");
    });
}

#[test]
fn rotary_fused_equals_plain() {
    compare(|device| {
        let (x, x_view) = leaf([11, 3, 10], 1, device);
        let angles = random([11, 5], 2, device).detach();
        (rotary(x_view, &angles.clone().cos(), &angles.sin()), vec![x])
    });
}

#[test]
fn attention_fused_equals_plain_for_ragged_sequences_and_shared_heads() {
    let above = blockwise::BLOCK + 9;
    for (heads, kv_heads, dim, lengths) in [
        (4, 2, 8, vec![5, 1, 33, 7]),
        (3, 1, 6, vec![2, 9]),
        (2, 2, 32, vec![70]),
        (4, 2, 40, vec![1]),
        (2, 1, 4, vec![3, above, 1, blockwise::BLOCK]),
    ] {
        compare(|device| {
            let rows = lengths.iter().sum();
            let (q, q_view) = leaf([rows, heads, dim], 1, device);
            let (k, k_view) = leaf([rows, kv_heads, dim], 2, device);
            let (v, v_view) = leaf([rows, kv_heads, dim], 3, device);
            (attention(q_view, k_view, v_view, &lengths, None, FloatDType::F32), vec![q, k, v])
        });
    }
}

/// Windows of one key, of less and more than a query block of either implementation, and of all keys but one.
#[test]
fn attention_in_a_window_fused_equals_plain() {
    let long = blockwise::BLOCK + 90;
    for (heads, kv_heads, dim, lengths, window) in [
        (2, 1, 6, vec![5, 1, 33, 7], 1),
        (4, 2, 8, vec![40, 3, 110], 7),
        (3, 3, 10, vec![long, 20], 50),
        (2, 1, 4, vec![long], blockwise::BLOCK + 3),
        (1, 1, 32, vec![70, 100], 99),
    ] {
        compare(|device| {
            let rows = lengths.iter().sum();
            let (q, q_view) = leaf([rows, heads, dim], 1, device);
            let (k, k_view) = leaf([rows, kv_heads, dim], 2, device);
            let (v, v_view) = leaf([rows, kv_heads, dim], 3, device);
            (attention(q_view, k_view, v_view, &lengths, Some(window), FloatDType::F32), vec![q, k, v])
        });
    }
}

/// Keys outside the window have no effect, and a window that covers all keys changes nothing.
#[test]
fn a_window_hides_what_is_before_it_and_nothing_else() {
    let device = Device::flex();
    both(|| {
        let of = |k: Tensor<3>, window| {
            let (q, v) = (random([9, 2, 4], 1, &device), random([9, 1, 4], 3, &device));
            to_host(attention(q, k, v, &[9], window, FloatDType::F32))
        };
        let keys: Tensor<3> = random([9, 1, 4], 2, &device);
        let other = Tensor::cat(vec![random([1, 1, 4], 4, &device), keys.clone().narrow(0, 1, 8)], 0);
        let (ours, changed) = (of(keys.clone(), Some(3)), of(other, Some(3)));
        assert!(ours[..8] == of(keys.clone(), None)[..8] && ours[3 * 8..] == changed[3 * 8..]);
        assert!(ours[2 * 8..3 * 8] != changed[2 * 8..3 * 8]);
        close(&of(keys.clone(), Some(9)), &of(keys, None), "a window of all");
    });
}

#[test]
fn scores_fused_equal_plain() {
    for (rows, vocab, temperature) in [(1, 3, 1.0), (1, 1, 1.0), (19, 101, 1.0), (8, 640, 0.6), (5, 33, 1.7)] {
        let targets: Vec<u32> = (0..rows).map(|row| (row * 7 % vocab) as u32).collect();
        let of = |device: &Device, pick: fn(RowScores) -> Tensor<1>| {
            let (logits, view) = leaf([rows, vocab], 5, device);
            (pick(scores(view.mul_scalar(3.0), &targets, temperature)), vec![logits])
        };
        compare(|device| of(device, |scores| scores.log_prob));
        compare(|device| of(device, |scores| scores.entropy_sampling));
        compare(|device| of(device, |scores| scores.log_prob.mul_scalar(0.3) + scores.entropy_sampling));
        let device = Device::flex().autodiff();
        let [fused, plain] = both(|| {
            let scores = scores(random([rows, vocab], 5, &device), &targets, temperature);
            [to_host(scores.entropy.inner()), to_host(scores.collision.inner())]
        });
        close(&fused[0], &plain[0], "entropy");
        close(&fused[1], &plain[1], "collision probability");
    }
}

#[test]
fn the_cache_fused_equals_plain() {
    // Two completions of one prompt, one of another and one without a prompt. Rows between them must not be read.
    let spans = vec![[0..3, 10..14], [0..3, 15..16], [4..9, 20..22], [9..9, 23..25]];
    let call = CacheCall::new(spans.iter().map(|[_, own]| own.end - 1).collect(), spans);
    let device = Device::flex();
    let [fused, plain] = both(|| {
        // Each implementation has its own copy of the call, which caches tensors.
        let call = CacheCall::new(call.writes.clone(), call.spans.to_vec());
        let q = random([4, 4, 8], 1, &device);
        let table = |seed| write_rows(random([25, 16], seed, &device), random([4, 16], seed + 10, &device), &call);
        let (keys, values) = (table(2), table(3));
        [to_host(attention_cached(q, &keys, &values, &call)), to_host(keys)]
    });
    close(&fused[0], &plain[0], "attention");
    assert_eq!(fused[1], plain[1], "table");
}

/// If this failed, the tests above would compare an operation with itself.
#[test]
fn plain_operations_are_taken_in_the_closure_alone_even_if_it_panics() {
    let device = Device::flex();
    assert!(is_host(&device) && !plainly(|| is_host(&device)));
    assert_eq!(both(|| is_host(&device)), [true, false]);
    assert!(std::panic::catch_unwind(|| plainly(|| panic!("a check that fails"))).is_err());
    assert!(is_host(&device));
}

/// Sequences shorter than a chunk, at its edges and longer; several column blocks; two value heads per key head.
#[test]
fn delta_rule_fused_equals_plain() {
    let heads = delta::DeltaHeads { keys: 2, values: 4, key_dim: 6, value_dim: 37 };
    let lengths = [1, 40, 16, 17, 64, 3];
    let rows: usize = lengths.iter().sum();
    compare(|device| {
        let leaf = |width: usize, seed| leaf([rows, width], seed, device);
        let ((q, q_view), (k, k_view), (v, v_view)) = (leaf(12, 1), leaf(12, 2), leaf(148, 3));
        let ((decay, decay_view), (beta, beta_view)) = (leaf(4, 4), leaf(4, 5));
        let inputs = delta::DeltaInputs {
            q: q_view.mul_scalar(0.3),
            k: k_view.mul_scalar(0.3),
            v: v_view,
            decay: (decay_view.mul_scalar(0.2) - 0.45),
            beta: burn::tensor::activation::sigmoid(beta_view),
        };
        (delta::delta_rule(inputs, &lengths, heads), vec![q, k, v, decay, beta])
    });
}

#[test]
fn causal_conv_fused_equals_plain() {
    let lengths = [1, 2, 5, 3, 700];
    let rows: usize = lengths.iter().sum();
    compare(|device| {
        let (x, x_view) = leaf([rows, 33], 1, device);
        let (weight, weight_view) = leaf([33, 4], 2, device);
        (delta::causal_conv(x_view, weight_view, &lengths), vec![x, weight])
    });
}

/// A sequence read in several passes gives the outputs of one pass; padding rows do not interfere.
#[test]
fn states_go_on_where_they_were_left() {
    let heads = delta::DeltaHeads { keys: 1, values: 2, key_dim: 5, value_dim: 3 };
    let device = Device::flex();
    let inputs = |rows: Range<usize>| {
        let part = |width: usize, seed| random([12, width], seed, &device).slice([rows.clone(), 0..width]);
        delta::DeltaInputs {
            q: part(5, 1),
            k: part(5, 2).mul_scalar(0.2),
            v: part(6, 3),
            decay: part(2, 4).abs().neg(),
            beta: part(2, 5).abs().mul_scalar(0.4),
        }
    };
    let whole = to_host(delta::delta_rule(inputs(0..12), &[12], heads));
    both(|| {
        let table = Tensor::<2>::ones([4, heads.state()], &device);
        let step = |from, to| delta::StateMove { from, to };
        let (first, table) = delta::delta_rule_cached(inputs(0..10), table, &[10], &[step(None, 2)], heads);
        // Two sequences continue from the same state, beside two rows of padding.
        let next = inputs(10..11);
        let four = |x: Tensor<2>| x.repeat_dim(0, 4);
        let next = delta::DeltaInputs {
            q: four(next.q),
            k: four(next.k),
            v: four(next.v),
            decay: four(next.decay),
            beta: four(next.beta),
        };
        let moves = [step(Some(2), 0), step(Some(2), 1), step(Some(3), 3), step(Some(3), 3)];
        let (second, table) = delta::delta_rule_cached(next, table, &[1; 4], &moves, heads);
        let second = to_host(second);
        let (third, _) = delta::delta_rule_cached(inputs(11..12), table, &[1], &[step(Some(1), 1)], heads);
        close(&second[..6], &second[6..12], "two of one state");
        close(&[to_host(first), second[..6].to_vec(), to_host(third)].concat(), &whole, "in three passes");
    });
}

/// Similar keys, rates near 1 and slow decays: the inverse of a chunk's system has ones, its powers have thousands.
#[test]
fn delta_rule_of_similar_keys_fused_equals_plain() {
    let heads = delta::DeltaHeads { keys: 1, values: 1, key_dim: 8, value_dim: 4 };
    let (rows, device) = (48, Device::flex());
    let [fused, plain] = both(|| {
        let unit = |width: usize| Tensor::<2>::ones([rows, width], &device);
        let near = |seed| (random([rows, 8], seed, &device).mul_scalar(0.02) + 1.0).mul_scalar(1.0 / 8f64.sqrt());
        let inputs = delta::DeltaInputs {
            q: near(1),
            k: near(2),
            v: random([rows, 4], 3, &device),
            decay: unit(1).mul_scalar(-0.01),
            beta: unit(1).mul_scalar(0.95),
        };
        to_host(delta::delta_rule(inputs, &[rows], heads))
    });
    close(&fused, &plain, "outputs");
}
