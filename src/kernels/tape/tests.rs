//! What the backward pass says is final stays as it is: in a distributed run it is on its way to the other processes.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop where it stands")]

use std::ops::ControlFlow;
use std::rc::Rc;

use candle_core::{DType, Device, Tensor};

use super::{Tape, Var};
use crate::kernels::losses::Loss;
use crate::kernels::parameters::Parameters;
use crate::kernels::tokens::Restore;
use crate::model::{Activation, Ops, ParameterSpec, PositionConfig, PositionKind, Resample, VitConfig, vit_parameters};

const WIDTH: usize = 64;

/// One block of a ViT, whose parameters are called `blocks.0.…`.
fn block() -> VitConfig {
    let vit = serde_json::json!({
        "image_size": [8, 8], "patch_size": 4, "width": WIDTH, "depth": 1, "heads": 2, "mlp_width": 2 * WIDTH,
        "norm_eps": 1e-6, "activation": "gelu-erf", "final_norm": true,
    });
    let mut vit = vit;
    let position = PositionConfig { kind: PositionKind::Learned, resample: Resample::Size };
    vit["position"] = serde_json::to_value(position).unwrap();
    serde_json::from_value(vit).unwrap()
}

/// In the order of the forward pass: what is used first comes first.
fn parameters() -> Parameters {
    let spec = |name: &str, shape: &[usize]| ParameterSpec { name: name.into(), shape: shape.to_vec() };
    let mut specs = vec![spec("token", &[1, 1, WIDTH]), spec("mask", &[1, 1, WIDTH])];
    specs.extend(vit_parameters(&block()).into_iter().filter(|spec| spec.name.starts_with("blocks.0.")));
    specs.extend([spec("scale", &[WIDTH]), spec("norm.weight", &[WIDTH]), spec("norm.bias", &[WIDTH])]);
    specs.extend([spec("out.weight", &[WIDTH, WIDTH]), spec("out.bias", &[WIDTH])]);
    let values = |at: usize, spec: &ParameterSpec| {
        (0..spec.elements()).map(|i| 0.3 * ((i * 7 + at * 13) as f32 * 0.37).sin()).collect::<Vec<f32>>()
    };
    let values = specs.into_iter().enumerate().map(|(at, spec)| (spec.clone(), values(at, &spec))).collect();
    let table = (spec("table", &[1, 5, WIDTH]), vec![0.1; 5 * WIDTH]);
    Parameters::new(values, vec![table], DType::F32, &Device::Cpu).unwrap()
}

/// One pass through every parameter.
fn pass(tape: &mut Tape<'_>, recompute: bool) -> Var {
    let (vit, restore) = (Rc::new(block()), Rc::new(Restore::new(vec![2, 0, 1, 3, 1, 3, 0, 2], 4, 2)));
    let x = tape.constant(Tensor::ones((2, 2, WIDTH), DType::F32, &Device::Cpu).unwrap());
    let token = tape.parameter("token").unwrap();
    let x = tape.prepend_token(&token, &x).unwrap();
    let x = tape.unshuffle(x, "mask", "table", &restore).unwrap();
    let x = match recompute {
        true => tape.recomputed_block(x, &vit, "blocks.0", None).unwrap(),
        false => tape.block(x, &vit, "blocks.0", None).unwrap(),
    };
    let x = tape.layer_scale(&x, "scale").unwrap();
    let x = tape.gelu(&x, Activation::GeluErf).unwrap();
    let x = tape.layer_norm(&x, "norm", 1e-5).unwrap();
    tape.linear(&x, "out").unwrap()
}

#[test]
fn a_parameter_used_twice_is_final_after_both_uses_and_not_before() {
    for recompute in [false, true] {
        let parameters = parameters();
        let mut tape = Tape::new(&parameters);
        // As a decoder that two targets share: every parameter is used once on each way.
        for at in 0..2 {
            let y = pass(&mut tape, recompute);
            let weights = (0..2 * 5 * WIDTH).map(|i| ((i + at) as f32 * 0.73).sin()).collect::<Vec<f32>>();
            let gradient = Tensor::from_vec(weights, (2, 5, WIDTH), &Device::Cpu).unwrap();
            tape.loss(y, |y| Ok(Loss { value: y.sum_all()?, gradient })).unwrap();
        }
        let gradients = || parameters.gradients().to_vec1::<f32>().unwrap();
        let mut told: Vec<(usize, Vec<f32>)> = Vec::new();
        let mut written = vec![false; parameters.slots().len()];
        let mut finished = |from: usize| told.push((from, gradients()[from..].to_vec()));
        let end = tape.backward(&mut written, &mut finished, &mut |_| ControlFlow::Continue(())).unwrap();
        assert!(end.is_continue() && written.iter().all(|written| *written));
        assert!(told.len() > 4, "little of it was told while the rest was computed: {}", told.len());
        assert!(told.windows(2).all(|pair| pair[1].0 < pair[0].0) && told.last().unwrap().0 == 0);
        let end = gradients();
        for (from, early) in told {
            let name = &parameters.slots().iter().find(|slot| slot.range.start == from).unwrap().spec.name;
            assert!(early == end[from..], "`{name}` and what follows it changed after it was said to be final");
        }
    }
}

#[test]
fn a_backward_pass_that_is_told_to_stop_stops() {
    let parameters = parameters();
    let mut tape = Tape::new(&parameters);
    let y = pass(&mut tape, true);
    tape.loss(y, |y| Ok(Loss { value: y.sum_all()?, gradient: y.clone() })).unwrap();
    let (mut written, mut asked) = (vec![false; parameters.slots().len()], 0);
    let mut stop = |_: usize| {
        asked += 1;
        if asked == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    assert!(tape.backward(&mut written, &mut |_| {}, &mut stop).unwrap().is_break());
    assert_eq!((asked, written.iter().all(|written| *written)), (3, false));
}
