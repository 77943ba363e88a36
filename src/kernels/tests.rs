//! Every operation's gradient, three ways: the tape's, candle's on the composed form in f64, and central differences of that
//! form.
//!
//! Differences in f64 with a step of 1e-5 are good to about 1e-9, so they test the composed form to 1e-7; the tape is f32 and
//! agrees with it to 1e-5 of the largest gradient.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop where it stands")]

use std::ops::ControlFlow;
use std::rc::Rc;

use candle_core::{D, DType, Device, Tensor, Var as Tracked};

use super::losses::Loss;
use super::parameters::Parameters;
use super::row_logits::RowLogits;
use super::tape::{Tape, Var};
use super::tokens::Restore;
use crate::model::{Activation, Ops, ParameterSpec};

fn wave(count: usize, rate: f64, shift: f64) -> Vec<f64> {
    (0..count).map(|i| 1.5 * (i as f64 * rate + shift).sin()).collect()
}

/// Checks one operation on named inputs: `own` records it, `composed` writes it in candle's operations.
fn check(
    what: &str,
    inputs: &[(&str, &[usize])],
    fixed: &[(&str, Vec<f64>, &[usize])],
    own: impl Fn(&mut Tape<'_>) -> Var,
    composed: impl Fn(&[Tensor]) -> candle_core::Result<Tensor>,
) {
    let cpu = Device::Cpu;
    let values: Vec<Vec<f64>> = inputs
        .iter()
        .enumerate()
        // Rounded to f32 first, so that both forms see the same numbers.
        .map(|(at, (_, shape))| wave(shape.iter().product(), 0.37 + 0.11 * at as f64, at as f64))
        .map(|values| values.into_iter().map(|x| f64::from(x as f32)).collect())
        .collect();
    let spec = |name: &str, shape: &[usize]| ParameterSpec { name: name.into(), shape: shape.to_vec() };
    let narrow = |values: &[f64]| values.iter().map(|x| *x as f32).collect::<Vec<f32>>();
    let parameters = Parameters::new(
        inputs.iter().zip(&values).map(|((name, shape), values)| (spec(name, shape), narrow(values))).collect(),
        fixed.iter().map(|(name, values, shape)| (spec(name, shape), narrow(values))).collect(),
        DType::F32,
        &cpu,
    )
    .unwrap();

    // The loss is a fixed weighted sum of the outputs.
    let tracked: Vec<Tracked> = inputs
        .iter()
        .zip(&values)
        .map(|((_, shape), values)| Tracked::from_tensor(&Tensor::from_slice(values, *shape, &cpu).unwrap()).unwrap())
        .collect();
    let tensors: Vec<Tensor> = tracked.iter().map(|var| var.as_tensor().clone()).collect();
    let out = composed(&tensors).unwrap();
    let weights = Tensor::from_vec(wave(out.elem_count(), 0.73, 0.2), out.shape(), &cpu).unwrap();
    let loss = |tensors: &[Tensor]| {
        (composed(tensors).unwrap() * &weights).unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap()
    };
    let expected = (&out * &weights).unwrap().sum_all().unwrap().backward().unwrap();

    let mut tape = Tape::new(&parameters);
    let y = own(&mut tape);
    let ours: Vec<f32> = tape.value(y).flatten_all().unwrap().to_vec1().unwrap();
    let theirs: Vec<f64> = out.flatten_all().unwrap().to_vec1().unwrap();
    agree(&format!("{what}: value"), &ours, &theirs, 1e-5);
    let gradient = weights.to_dtype(DType::F32).unwrap();
    tape.loss(y, |y| Ok(Loss { value: y.sum_all()?, gradient: gradient.reshape(y.shape())? })).unwrap();
    let mut written = vec![false; parameters.slots().len()];
    let end = tape.backward(&mut written, &mut |_| {}, &mut |_| ControlFlow::Continue(())).unwrap();
    assert!(end.is_continue());
    assert!(written.iter().all(|written| *written), "{what}: {written:?}");

    for (at, ((name, _), var)) in inputs.iter().zip(&tracked).enumerate() {
        let theirs: Vec<f64> = expected.get(var.as_tensor()).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let ours: Vec<f32> = parameters.gradient(at).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        agree(&format!("{what}: gradient of {name}"), &ours, &theirs, 1e-5);
        let scale = theirs.iter().fold(0f64, |most, g| most.max(g.abs()));
        for i in [0, theirs.len() / 3, theirs.len() - 1] {
            let shifted = |by: f64| {
                let mut moved = values[at].clone();
                moved[i] += by;
                let mut tensors = tensors.clone();
                tensors[at] = Tensor::from_vec(moved, tensors[at].shape(), &cpu).unwrap();
                loss(&tensors)
            };
            let difference = (shifted(1e-5) - shifted(-1e-5)) / 2e-5;
            assert!(
                (difference - theirs[i]).abs() < 1e-7 * (1.0 + scale),
                "{what}: {name}[{i}] {difference} {}",
                theirs[i]
            );
        }
    }
}

fn agree(what: &str, ours: &[f32], theirs: &[f64], tolerance: f64) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    let scale = theirs.iter().fold(0f64, |most, x| most.max(x.abs()));
    let worst = ours.iter().zip(theirs).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
    assert!(worst <= tolerance * scale, "{what}: {:e}", worst / scale);
}

#[test]
fn linear_with_and_without_a_residual() {
    let inputs: [(&str, &[usize]); 4] =
        [("x", &[2, 37, 6]), ("l.weight", &[5, 6]), ("l.bias", &[5]), ("r", &[2, 37, 5])];
    let product = |t: &[Tensor]| t[0].broadcast_matmul(&t[1].t()?)?.broadcast_add(&t[2]);
    check(
        "linear",
        &inputs[..3],
        &[],
        |tape| {
            let x = tape.parameter("x").unwrap();
            tape.linear(&x, "l").unwrap()
        },
        product,
    );
    check(
        "linear on a residual",
        &inputs,
        &[],
        |tape| {
            let (x, r) = (tape.parameter("x").unwrap(), tape.parameter("r").unwrap());
            tape.linear_add(&r, &x, "l").unwrap()
        },
        |t| product(t)? + &t[3],
    );
}

#[test]
fn layer_norm() {
    check(
        "layer norm",
        &[("x", &[3, 35, 7]), ("n.weight", &[7]), ("n.bias", &[7])],
        &[],
        |tape| {
            let x = tape.parameter("x").unwrap();
            tape.layer_norm(&x, "n", 1e-3).unwrap()
        },
        |t| {
            let centred = t[0].broadcast_sub(&t[0].mean_keepdim(D::Minus1)?)?;
            let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
            centred.broadcast_div(&(variance + 1e-3)?.sqrt()?)?.broadcast_mul(&t[1])?.broadcast_add(&t[2])
        },
    );
}

#[test]
fn gelu_in_both_forms() {
    let inputs: [(&str, &[usize]); 1] = [("x", &[2, 9, 5])];
    for (kind, composed) in [
        (Activation::GeluErf, (|t: &[Tensor]| t[0].gelu_erf()) as fn(&[Tensor]) -> candle_core::Result<Tensor>),
        (Activation::GeluTanh, |t| {
            let inner = ((&t[0] + (t[0].powf(3.0)? * 0.044715)?)? * (2.0 / std::f64::consts::PI).sqrt())?;
            (&t[0] * 0.5)? * (inner.tanh()? + 1.0)?
        }),
    ] {
        check(
            "gelu",
            &inputs,
            &[],
            |tape| {
                let x = tape.parameter("x").unwrap();
                tape.gelu(&x, kind).unwrap()
            },
            composed,
        );
    }
}

#[test]
fn swiglu_and_layer_scale() {
    check(
        "swiglu",
        &[("x", &[2, 19, 10])],
        &[],
        |tape| {
            let x = tape.parameter("x").unwrap();
            tape.swiglu(&x).unwrap()
        },
        |t| t[0].narrow(D::Minus1, 0, 5)?.silu()? * t[0].narrow(D::Minus1, 5, 5)?,
    );
    check(
        "layer scale",
        &[("x", &[2, 35, 3]), ("g", &[3])],
        &[],
        |tape| {
            let x = tape.parameter("x").unwrap();
            tape.layer_scale(&x, "g").unwrap()
        },
        |t| t[0].broadcast_mul(&t[1]),
    );
}

#[test]
fn attention_over_more_tokens_than_one_block_of_queries() {
    let (batch, tokens, heads, d) = (2, 260, 2, 4);
    let width = heads * d;
    check(
        "attention",
        &[("x", &[batch, tokens, 3 * width])],
        &[],
        |tape| {
            let x = tape.parameter("x").unwrap();
            tape.attention(&x, heads).unwrap()
        },
        |t| {
            let part = |at: usize| {
                let part = t[0].narrow(D::Minus1, at * width, width)?;
                part.reshape((batch, tokens, heads, d))?.transpose(1, 2)?.contiguous()
            };
            let scores = (part(0)?.matmul(&part(1)?.t()?.contiguous()?)? * (d as f64).powf(-0.5))?;
            let scores = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
            let weights = scores.broadcast_div(&scores.sum_keepdim(D::Minus1)?)?;
            weights.matmul(&part(2)?)?.transpose(1, 2)?.reshape((batch, tokens, width))
        },
    );
}

#[test]
fn logits_of_chosen_rows() {
    let (batch, tokens, heads, d) = (2, 6, 2, 3);
    let width = heads * d;
    let rows = Tensor::new(&[[0u32, 3, 1], [0, 5, 2]], &Device::Cpu).unwrap();
    for prefix in [1, 2] {
        let shape = RowLogits { heads, width, scale: 0.3, prefix };
        check(
            "row logits",
            &[("x", &[batch, tokens, 2 * width])],
            &[],
            |tape| {
                let x = tape.parameter("x").unwrap();
                tape.row_logits(x, &rows, shape).unwrap()
            },
            |t| {
                let split = |part: Tensor| -> candle_core::Result<Tensor> {
                    let count = part.dim(1)?;
                    part.contiguous()?.reshape((batch, count, heads, d))?.transpose(1, 2)?.contiguous()
                };
                let q = t[0].narrow(D::Minus1, 0, width)?.contiguous()?;
                let index = rows.unsqueeze(2)?.broadcast_as((batch, 3, width))?.contiguous()?;
                let q = split(q.gather(&index, 1)?)?;
                let k = split(t[0].narrow(D::Minus1, width, width)?.narrow(1, prefix, tokens - prefix)?)?;
                (q.matmul(&k.t()?.contiguous()?)? * 0.3)?.transpose(1, 2)?.contiguous()
            },
        );
    }
}

#[test]
fn hidden_patches_take_the_mask_token_and_are_picked_out() {
    let restore = Rc::new(Restore::new(vec![2, 0, 1, 3, 1, 3, 0, 2], 4, 2));
    let position = wave(5 * 3, 0.9, 0.4);
    let table =
        Tensor::from_vec(position.iter().map(|x| f64::from(*x as f32)).collect::<Vec<_>>(), (1, 5, 3), &Device::Cpu);
    let table = table.unwrap();
    check(
        "unshuffle",
        &[("x", &[2, 3, 3]), ("m", &[1, 1, 3])],
        &[("p", position, &[1, 5, 3])],
        |tape| {
            let x = tape.parameter("x").unwrap();
            tape.unshuffle(x, "m", "p", &restore).unwrap()
        },
        |t| {
            let class = t[0].narrow(1, 0, 1)?;
            let hidden = t[1].broadcast_as((2, 2, 3))?;
            let patches = Tensor::cat(&[&t[0].narrow(1, 1, 2)?, &hidden], 1)?.contiguous()?;
            // With two kept, places 2 and 3 of the shuffled order are the mask token's.
            let index = Tensor::from_slice(&restore.places, (2, 4), &Device::Cpu)?;
            let index = index.unsqueeze(2)?.broadcast_as((2, 4, 3))?.contiguous()?;
            Tensor::cat(&[&class, &patches.gather(&index, 1)?], 1)?.broadcast_add(&table)
        },
    );
    check(
        "hidden patches",
        &[("x", &[2, 5, 3])],
        &[],
        |tape| {
            let x = tape.parameter("x").unwrap();
            tape.hidden(x, &restore).unwrap()
        },
        // Patches 0 and 3 of the first image, 1 and 3 of the second; token 0 is the class token.
        |t| t[0].reshape((10, 3))?.index_select(&Tensor::new(&[1u32, 4, 7, 9], &Device::Cpu)?, 0)?.reshape((2, 2, 3)),
    );
}

#[test]
fn moving_and_joining_tokens_and_channels() {
    let both: [(&str, &[usize]); 2] = [("a", &[2, 5, 4]), ("b", &[2, 5, 4])];
    let two = |tape: &mut Tape<'_>| (tape.parameter("a").unwrap(), tape.parameter("b").unwrap());
    check(
        "add",
        &both,
        &[],
        |tape| {
            let (a, b) = two(tape);
            tape.add(&a, &b).unwrap()
        },
        |t| &t[0] + &t[1],
    );
    check(
        "concatenate and cut channels",
        &both,
        &[],
        |tape| {
            let (a, b) = two(tape);
            let all = tape.concat_channels(&[a, b]).unwrap();
            let (left, right) = (tape.channels(&all, 0, 3).unwrap(), tape.channels(&all, 3, 3).unwrap());
            let last = tape.channels(&all, 5, 3).unwrap();
            let sum = tape.add(&left, &right).unwrap();
            tape.add(&sum, &last).unwrap()
        },
        |t| {
            let all = Tensor::cat(&[&t[0], &t[1]], D::Minus1)?;
            (all.narrow(2, 0, 3)? + all.narrow(2, 3, 3)?)? + all.narrow(2, 5, 3)?
        },
    );
    check(
        "prepend, cut, select and average tokens",
        &[("x", &[2, 5, 4]), ("t", &[1, 2, 4])],
        &[],
        |tape| {
            let (x, t) = (tape.parameter("x").unwrap(), tape.parameter("t").unwrap());
            let all = tape.prepend_token(&t, &x).unwrap();
            let cut = tape.tokens(&all, 1, None).unwrap();
            let first = tape.select_token(&cut, 0).unwrap();
            let mean = tape.mean_tokens(&all, 3).unwrap();
            tape.add(&first, &mean).unwrap()
        },
        |t| {
            let all = Tensor::cat(&[&t[1].broadcast_as((2, 2, 4))?.contiguous()?, &t[0]], 1)?;
            all.narrow(1, 1, 1)?.squeeze(1)? + all.narrow(1, 3, 4)?.mean(1)?
        },
    );
    // A value used twice, once through itself.
    check(
        "a value used twice",
        &both[..1],
        &[],
        |tape| {
            let a = tape.parameter("a").unwrap();
            let twice = tape.add(&a, &a).unwrap();
            tape.add(&twice, &a).unwrap()
        },
        |t| (&t[0] + &t[0])? + &t[0],
    );
}
