//! Every known way to load a model wrong is detected and named.
//!
//! Each trap is set by spoiling a rightly converted model, and sprung by the authors' own activations.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tec_zoo::destination::Destination;
use tec_zoo::kernels::KernelError;
use tec_zoo::model::{Activation, Canonical, Resample};
use tec_zoo::verify::{
    Cause, Event, Golden, Options, Origin, Outcome, Point, PositionAxes, Precision, Report, StageReport, VerifyError,
    make_golden, verify,
};
use tempfile::TempDir;

use crate::parity::convert;
use crate::words::InFull;

/// With nobody listening.
fn replay(model: &Canonical, golden: &Golden, options: &Options) -> Result<Report, VerifyError> {
    verify(model, golden, options, &mut |_| ControlFlow::Continue(()))
}

/// A converted model, open for spoiling.
struct Spoiled {
    dir: TempDir,
    config: Value,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl Spoiled {
    fn of(file: &str, family: &str, branch: Option<&str>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        convert(&Path::new("fixtures/reference").join(file), family, branch, &dir.path().join("model"));
        let read = |name: &str| std::fs::read(dir.path().join("model").join(name)).unwrap();
        let config = serde_json::from_slice(&read("config.json")).unwrap();
        let bytes = read("model.safetensors");
        let tensors = safetensors::SafeTensors::deserialize(&bytes)
            .unwrap()
            .iter()
            .map(|(name, view)| {
                let values = view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
                (name.to_string(), (view.shape().to_vec(), values))
            })
            .collect();
        Self { dir, config, tensors }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("model")
    }

    fn vit(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.config["tec_zoo"]["vit"][field] = value.into();
        self
    }

    fn every(mut self, change: impl Fn(f32) -> f32) -> Self {
        for (_, values) in self.tensors.values_mut() {
            for value in values {
                *value = change(*value);
            }
        }
        self
    }

    /// Reorders equal parts along the first axis of the tensors whose name contains `name`.
    fn reorder(mut self, name: &str, order: &[usize]) -> Self {
        let hit = self.tensors.iter_mut().filter(|(key, _)| key.contains(name));
        for (_, (_, values)) in hit {
            let part = values.len() / order.len();
            *values = order.iter().flat_map(|i| values[i * part..][..part].to_vec()).collect();
        }
        self
    }

    fn model(&self) -> Canonical {
        let tensors: Vec<(&str, &Vec<usize>, Vec<u8>)> = self
            .tensors
            .iter()
            .map(|(name, (shape, values))| {
                (name.as_str(), shape, values.iter().flat_map(|v| v.to_le_bytes()).collect())
            })
            .collect();
        let views = tensors
            .iter()
            .map(|(name, shape, bytes)| (*name, TensorView::new(Dtype::F32, (*shape).clone(), bytes).unwrap()));
        let at = |name: &str| self.path().join(name);
        std::fs::write(at("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
        std::fs::write(at("config.json"), self.config.to_string()).unwrap();
        Canonical::open(&self.path()).unwrap()
    }

    fn against(&self, family: &str) -> Report {
        replay(&self.model(), &golden(family), &Options::default()).unwrap()
    }
}

fn golden(family: &str) -> Golden {
    Golden::open(&PathBuf::from(format!("fixtures/reference/{family}_expected.safetensors"))).unwrap()
}

fn mae() -> Spoiled {
    Spoiled::of("mae_pretrain_vit_tiny.pth", "mae", None)
}

fn mocov3(branch: &str) -> Spoiled {
    Spoiled::of("mocov3_vit_tiny.pth.tar", "moco-v3", Some(branch))
}

fn ibot(branch: &str) -> Spoiled {
    Spoiled::of("ibot_checkpoint_full.pth", "ibot", Some(branch))
}

/// The fixture with everything that a plain ViT has not.
fn dinov2() -> Spoiled {
    Spoiled::of("../dinov2/vitg_reg4_tiny14_pretrain.pth", "dinov2", None)
}

const DINOV2: &str = "../dinov2/vitg_reg4";

fn tec() -> Spoiled {
    Spoiled::of("tec_checkpoint-299.pth", "tec", None)
}

#[track_caller]
fn names(report: &Report, cause: &Cause, proven: bool, words: &str) {
    assert_eq!(report.holds, Some(false));
    let diagnosis = report.diagnosis.as_ref().unwrap();
    assert_eq!(&diagnosis.cause, cause, "{diagnosis:?}");
    assert_eq!(diagnosis.proven, proven, "{diagnosis:?}");
    let said = format!("{report}: {}", diagnosis.action);
    assert!(said.contains(words), "{said}");
}

#[test]
fn a_right_model_holds_and_nothing_is_suspected() {
    for (spoiled, family) in
        [(mae(), "mae"), (mocov3("base"), "mocov3"), (ibot("teacher"), "ibot"), (tec(), "tec"), (dinov2(), DINOV2)]
    {
        let report = spoiled.against(family);
        assert_eq!(report.holds, Some(true), "{family}: {report}");
        assert_eq!(report.origin, Origin::Upstream);
        assert!(report.stages.iter().all(|stage| stage.outcome == Outcome::Holds), "{report:?}");
    }
}

#[test]
fn a_wrong_head_count_is_named() {
    for wrong in [1, 2, 8, 16] {
        let report = mae().vit("heads", wrong).against("mae");
        assert_eq!(report.first_diverging, Some(Point::Block(0)));
        names(&report, &Cause::Heads { configured: wrong, fits: 4 }, true, "convert again with `heads`: 4");
    }
}

#[test]
fn a_wrong_eps_is_named_even_where_it_hides_below_the_tolerance() {
    for (right, family) in
        [(mae as fn() -> Spoiled, "mae"), (|| mocov3("base"), "mocov3"), (|| ibot("teacher"), "ibot"), (tec, "tec")]
    {
        let wrong = right().vit("norm_eps", 1e-5);
        let cause = Cause::NormEps { configured: 1e-5, fits: 1e-6, adapters: false };
        names(&wrong.against(family), &cause, true, "convert again with `norm_eps`: 1e-6");

        let lenient = Options { tolerance: Some(1e-4), ..Options::default() };
        let report = replay(&wrong.model(), &golden(family), &lenient).unwrap();
        assert_eq!(report.first_diverging, None);
        names(&report, &cause, true, "all stages are within 1.0e-4 relative, and yet");
    }
}

#[test]
fn a_wrong_eps_of_the_adapters_is_named() {
    let mut spoiled = tec();
    spoiled.config["tec_zoo"]["vit"]["adapters"]["norm_eps"] = json!(1e-3);
    let report = spoiled.against("tec");
    assert_eq!(report.first_diverging, Some(Point::Adapted));
    let cause = Cause::NormEps { configured: 1e-3, fits: 1e-5, adapters: true };
    names(&report, &cause, true, "encoder adapter's LayerNorms");
}

#[test]
fn the_tanh_gelu_is_named() {
    let report = mae().vit("activation", "gelu-tanh").against("mae");
    let cause = Cause::Activation { configured: Activation::GeluTanh, fits: Activation::GeluErf };
    names(&report, &cause, true, "set `activation` in config.json to `gelu-erf`");
}

#[test]
fn every_wrong_order_of_the_qkv_thirds_is_named() {
    for (order, holds) in
        [([1, 0, 2], "k,q,v"), ([0, 2, 1], "q,v,k"), ([2, 1, 0], "v,k,q"), ([1, 2, 0], "k,v,q"), ([2, 0, 1], "v,q,k")]
    {
        let report = mae().reorder("attn.qkv", &order).against("mae");
        names(&report, &Cause::QkvOrder { holds: holds.into() }, true, "the common order is q,k,v");
    }
}

#[test]
fn gate_and_value_exchanged_are_named() {
    let report = dinov2().reorder("mlp.fc1", &[1, 0]).against(DINOV2);
    assert_eq!(report.first_diverging, Some(Point::Block(0)));
    names(&report, &Cause::GateOrder, true, "the common order is gate, then value");
}

#[test]
fn a_layer_scale_left_at_its_initial_value_is_named() {
    for initial in [1.0, 1e-5] {
        let mut spoiled = dinov2();
        for branch in ["ls1", "ls2"] {
            spoiled.tensors.get_mut(&format!("blocks.1.{branch}.gamma")).unwrap().1.fill(initial);
        }
        let report = spoiled.against(DINOV2);
        assert_eq!(report.first_diverging, Some(Point::Block(1)));
        names(&report, &Cause::LayerScaleLost, false, "its trained values were lost");
    }
}

#[test]
fn the_rule_of_models_without_registers_is_named_where_there_are_some() {
    let mut spoiled = dinov2();
    spoiled.config["tec_zoo"]["vit"]["position"]["resample"] = json!({"rule": "scale-offset", "offset": 0.1});
    let report = spoiled.against(DINOV2);
    let configured = Resample::ScaleOffset { offset: 0.1 };
    names(&report, &Cause::PositionResample { configured, fits: Resample::SizeAntialias }, true, "size-antialias");
}

#[test]
fn one_block_swapped_is_found_at_that_block() {
    let report = mae().reorder("blocks.2.attn.qkv", &[0, 2, 1]).against("mae");
    assert_eq!(report.first_diverging, Some(Point::Block(2)));
    names(&report, &Cause::QkvOrder { holds: "q,v,k".into() }, true, "`block2` is the first stage");
}

#[test]
fn the_student_in_place_of_the_teacher_is_named() {
    let student = ibot("student");
    let report = student.against("ibot");
    let cause = Cause::Branch { taken: Some("student".into()), fits: vec!["teacher".into()] };
    names(&report, &cause, false, "convert again with `branch`: teacher");

    let teacher = ibot("teacher").model();
    let options = Options { alternatives: vec![("teacher".into(), teacher)], ..Options::default() };
    let report = replay(&student.model(), &golden("ibot"), &options).unwrap();
    names(&report, &cause, true, "the weights are the branch `student`");
}

#[test]
fn the_momentum_encoder_in_place_of_the_base_is_named() {
    let report = mocov3("momentum").against("mocov3");
    let cause = Cause::Branch { taken: Some("momentum".into()), fits: vec!["base".into()] };
    names(&report, &cause, false, "convert again with `branch`: base");
}

#[test]
fn a_missing_final_norm_is_named() {
    let mut spoiled = mae().vit("final_norm", false);
    spoiled.tensors.retain(|name, _| !name.starts_with("norm."));
    let report = spoiled.against("mae");
    assert_eq!(report.first_diverging, Some(Point::Norm));
    names(&report, &Cause::FinalNormMissing, false, "the model has no final norm");
    let blocks = report.stages.iter().filter(|stage| matches!(stage.stage, Point::Block(_)));
    assert!(blocks.map(|stage| stage.outcome).all(|outcome| outcome == Outcome::Holds));

    let released = Spoiled::of("tec_converted.pth", "tec", None).against("tec");
    names(&released, &Cause::FinalNormMissing, false, "released TEC files lost it");
}

#[test]
fn a_final_norm_left_at_its_initial_values_is_named() {
    let mut spoiled = mae();
    for (name, initial) in [("norm.weight", 1.0), ("norm.bias", 0.0)] {
        spoiled.tensors.get_mut(name).unwrap().1.fill(initial);
    }
    names(&spoiled.against("mae"), &Cause::FinalNormLost, false, "its trained values were lost");
}

#[test]
fn a_transposed_position_table_is_named() {
    let mut spoiled = mae();
    let (_, table) = spoiled.tensors.get_mut("pos_embed").unwrap();
    let stored = table.clone();
    for (row, column) in (0..4).flat_map(|row| (0..4).map(move |column| (row, column))) {
        let (to, from) = ((1 + row * 4 + column) * 16, (1 + column * 4 + row) * 16);
        table[to..to + 16].copy_from_slice(&stored[from..from + 16]);
    }
    let cause = Cause::PositionAxes { how: PositionAxes::GridTransposed };
    names(&spoiled.against("mae"), &cause, true, "the position table is transposed");
}

#[test]
fn swapped_halves_of_a_learned_position_table_are_named() {
    let mut spoiled = ibot("teacher");
    let (_, table) = spoiled.tensors.get_mut("pos_embed").unwrap();
    for row in table.chunks_exact_mut(16).skip(1) {
        row.rotate_left(8);
    }
    let cause = Cause::PositionAxes { how: PositionAxes::HalvesSwapped };
    names(&spoiled.against("ibot"), &cause, true, "halves of the position table's channels are swapped");
}

#[test]
fn a_wrong_resampling_rule_is_named() {
    let rule = json!({"kind": {"type": "learned"}, "resample": {"rule": "size"}});
    let report = ibot("teacher").vit("position", rule).against("ibot");
    assert_eq!(report.first_diverging, Some(Point::Large));
    let cause = Cause::PositionResample { configured: Resample::Size, fits: Resample::ScaleOffset { offset: 0.1 } };
    names(&report, &cause, true, "`scale-offset 0.1`");
}

#[test]
fn a_class_token_that_was_never_merged_is_named() {
    let mut spoiled = tec();
    let adapters = std::fs::read(spoiled.path().join("adapters.safetensors")).unwrap();
    let adapters = safetensors::SafeTensors::deserialize(&adapters).unwrap();
    let token = adapters.tensor("input_adapter.cls_token").unwrap();
    let values = token.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    spoiled.tensors.get_mut("cls_token").unwrap().1 = values;
    let report = spoiled.against("tec");
    assert_eq!(report.first_diverging, Some(Point::ClassToken));
    names(&report, &Cause::ClassTokenNotMerged, true, "before TEC's input adapter");
}

#[test]
fn a_trip_through_half_precision_is_named() {
    let report = mae().every(|value| bf16::from_f32(value).to_f32()).against("mae");
    names(&report, &Cause::Precision { stored: Precision::Bf16 }, false, "went through bf16");
    let report = mae().every(|value| f16::from_f32(value).to_f32()).against("mae");
    names(
        &report,
        &Cause::Precision { stored: Precision::F16 },
        false,
        "convert again from the original f32 checkpoint",
    );
}

#[test]
fn weights_nobody_can_place_are_called_different_weights() {
    let report = mae().every(|value| value * 1.01).against("mae");
    names(&report, &Cause::DifferentWeights, false, "no known mistake explains it");
}

#[test]
fn rounding_that_adds_up_is_not_blamed_on_a_setting() {
    let spoiled = mae();
    let held = spoiled.against("mae");
    let worst = held.stages.iter().max_by(|a, b| relative(a).total_cmp(&relative(b))).unwrap();
    let options = Options { tolerance: Some(relative(worst) * 0.99), ..Options::default() };
    let report = replay(&spoiled.model(), &golden("mae"), &options).unwrap();
    assert_eq!(report.first_diverging, Some(worst.stage));
    names(&report, &Cause::Rounding, false, "accept a greater tolerance");
}

fn relative(stage: &StageReport) -> f64 {
    stage.difference.unwrap().relative
}

#[test]
fn values_that_are_not_numbers_diverge() {
    let mut spoiled = mae();
    spoiled.tensors.get_mut("blocks.1.mlp.fc1.bias").unwrap().1[3] = f32::NAN;
    let report = spoiled.against("mae");
    assert_eq!(report.first_diverging, Some(Point::Block(1)));
    assert!(serde_json::to_value(&report).unwrap()["diagnosis"]["sentence"].is_string());
}

#[test]
fn a_record_made_here_replays_and_catches_a_changed_weight() {
    let mut spoiled = tec();
    let path = spoiled.path().join("golden.safetensors");
    make_golden(&spoiled.model(), &path, &mut |_| ControlFlow::Continue(())).unwrap();
    let first = std::fs::read(&path).unwrap();
    make_golden(&spoiled.model(), &path, &mut |_| ControlFlow::Continue(())).unwrap_err();
    make_golden(&spoiled.model(), Destination::new(&path).overwrite(true), &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(first, std::fs::read(&path).unwrap(), "the same model gives the same record");

    let golden = Golden::open(&path).unwrap();
    assert_eq!((golden.origin(), golden.fact("family")), (Origin::Own, Some("tec")));
    let report = replay(&spoiled.model(), &golden, &Options::default()).unwrap();
    assert_eq!(report.holds, Some(true), "{report}");
    let stages: Vec<String> = report.stages.iter().map(|stage| stage.stage.to_string()).collect();
    let all = ["cls_token_merged", "embedded", "block0", "block1", "block2", "block3", "norm", "adapted", "last_large"];
    assert_eq!(stages, all);

    spoiled.tensors.get_mut("patch_embed.proj.bias").unwrap().1[0] += 0.1;
    let report = replay(&spoiled.model(), &golden, &Options::default()).unwrap();
    assert_eq!(report.first_diverging, Some(Point::Embedded));
    names(&report, &Cause::DifferentWeights, false, "provenance");
}

#[test]
fn a_record_that_does_not_fit_is_refused_before_anything_runs() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, tensors: &[(&str, &[usize])]| {
        let stored: Vec<(&str, &[usize], Vec<u8>)> =
            tensors.iter().map(|(name, shape)| (*name, *shape, vec![0; 4 * shape.iter().product::<usize>()])).collect();
        let views = stored
            .iter()
            .map(|(name, shape, bytes)| (*name, TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap()));
        let path = dir.path().join(name);
        std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        path
    };
    let refused = |path: &Path| Golden::open(path).unwrap_err().in_full();
    let images: (&str, &[usize]) = ("images", &[1, 3, 64, 64]);
    assert!(refused(&write("a", &[("block0", &[1, 17, 16])])).contains("no `images`"));
    assert!(refused(&write("b", &[images])).contains("no activations"));
    assert!(refused(&write("c", &[images, ("blok0", &[1])])).contains("`blok0`"));
    assert!(refused(&write("d", &[images, ("images_large", &[1]), ("norm", &[1])])).contains("come together"));
    assert!(Golden::open(&dir.path().join("none")).is_err());

    let model = mae().model();
    for tensors in [
        &[images, ("block0", &[1, 17, 24])][..],
        &[images, ("block9", &[1, 17, 16])],
        &[("images", &[1, 3, 64, 80]), ("block0", &[1, 17, 16])],
    ] {
        let golden = Golden::open(&write("e", tensors)).unwrap();
        let refused = replay(&model, &golden, &Options::default()).unwrap_err();
        assert!(matches!(refused, VerifyError::Misfit { .. }), "{refused}");
    }
    let odd = Golden::open(&write("f", &[("images", &[1, 3, 60, 64]), ("block0", &[1, 17, 16])])).unwrap();
    assert!(matches!(replay(&model, &odd, &Options::default()), Err(VerifyError::Kernel(_))));
}

#[test]
fn a_replay_and_a_recording_end_where_their_listener_says_so() {
    let model = Spoiled::of("mae_pretrain_vit_tiny.pth", "mae", None);
    let model = model.model();
    let record = golden("mae");
    let mut layers = 0;
    let listen = &mut |_: Event<'_>| {
        layers += 1;
        ControlFlow::Continue(())
    };
    verify(&model, &record, &Options::default(), listen).unwrap();
    assert!(layers > 8, "{layers}");
    for at in [0, layers / 2, layers - 1] {
        let mut left = at;
        let ended = verify(&model, &record, &Options::default(), &mut |_| {
            left -= 1;
            if left < 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(matches!(ended, Err(VerifyError::Kernel(KernelError::Interrupted))), "{ended:?}");
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("golden.safetensors");
    assert!(make_golden(&model, &path, &mut |_| ControlFlow::Break(())).is_err());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
