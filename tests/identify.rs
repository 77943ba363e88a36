//! Weights are known by their values: whatever their names, container or type, and in the company of others.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tec_zoo::convert::{Layout, Request, convert, emit};
use tec_zoo::identify::{
    Fingerprint, Identified, IdentifyError, Progress, Relation, Sameness, identify, known, of_model, remember,
};
use tec_zoo::model::{Canonical, ModelFile, Weights};

use crate::words::InFull;

fn go_on(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/reference").join(name)
}

fn model(file: &str, family: &str, branch: Option<&str>, out: &Path) -> Canonical {
    let (family, branch) = (Some(family.to_owned()), branch.map(str::to_owned));
    let request = Request { family, branch, heads: Some(4), ..Request::default() };
    convert(&fixture(file), out, &request, &mut |_| ControlFlow::Continue(())).unwrap();
    Canonical::open(out).unwrap()
}

/// The four fixtures' models.
fn all(dir: &Path) -> Vec<Fingerprint> {
    [
        ("mae", "mae_pretrain_vit_tiny.pth", "mae", None),
        ("ibot", "ibot_checkpoint_full.pth", "ibot", Some("teacher")),
        ("moco", "mocov3_vit_tiny.pth.tar", "moco-v3", Some("base")),
        ("tec", "tec_checkpoint-299.pth", "tec", None),
    ]
    .map(|(name, file, family, branch)| {
        of_model(name, &model(file, family, branch, &dir.join(name)), &mut go_on).unwrap()
    })
    .into()
}

struct Tensor {
    name: String,
    shape: Vec<usize>,
    values: Vec<f32>,
}

/// A model's backbone.
fn tensors(dir: &Path) -> Vec<Tensor> {
    let weights = Weights::open(&dir.join(ModelFile::Model.name())).unwrap();
    let one = |name: &str| {
        let view = weights.get(name).unwrap();
        let values = view.bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect();
        Tensor { name: name.to_owned(), shape: view.shape.to_vec(), values }
    };
    weights.names().map(one).collect()
}

fn write(path: &Path, tensors: &[Tensor], dtype: Dtype) {
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|tensor| {
            let values = tensor.values.iter();
            match dtype {
                Dtype::F16 => values.flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect(),
                Dtype::BF16 => values.flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect(),
                Dtype::F64 => values.flat_map(|&value| f64::from(value).to_le_bytes()).collect(),
                _ => values.flat_map(|value| value.to_le_bytes()).collect(),
            }
        })
        .collect();
    let views = tensors.iter().zip(&bytes);
    let views = views
        .map(|(tensor, bytes)| (tensor.name.clone(), TensorView::new(dtype, tensor.shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// The one network of a file, which must be known: model, relation, sameness, whether all is equal.
fn only(found: &Identified) -> (&str, Relation, Option<Sameness>, bool) {
    let [finding] = found.findings.as_slice() else { panic!("several networks: {found:?}") };
    let is = finding.is.as_ref().unwrap_or_else(|| panic!("unknown: {found:?}"));
    (&is.model, is.relation, is.sameness, is.equal == is.of)
}

/// A reproducible number in -1..1.
fn noise(state: &mut u64) -> f32 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
}

#[test]
fn a_model_is_itself_in_every_container_and_layout() {
    let dir = tempfile::tempdir().unwrap();
    let known = all(dir.path());
    let same = |path: &Path, model: &str| {
        let found = identify(path, &known, &mut go_on).unwrap();
        assert_eq!(only(&found), (model, Relation::Same, Some(Sameness::Exact), true), "{}", path.display());
    };
    for file in ["mae_pretrain_vit_tiny.pth", "mae_pretrain_vit_tiny_legacy.pth"] {
        same(&fixture(file), "mae");
    }
    same(&dir.path().join("mae"), "mae");
    same(&dir.path().join("mae/model.safetensors"), "mae");
    same(&fixture("ibot_checkpoint_teacher.pth"), "ibot");
    same(&fixture("tec_checkpoint-299.pth"), "tec");
    // Hugging Face has q, k and v apart, and other names throughout.
    let out = dir.path().join("hf");
    let hf = Layout::ALL.into_iter().find(|layout| layout.name() == "hf").unwrap();
    let mae = Canonical::open(&dir.path().join("mae")).unwrap();
    emit(&mae, hf, None, &out, &mut |_| ControlFlow::Continue(())).unwrap();
    same(&out, "mae");
}

#[test]
fn names_and_order_and_type_hide_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let known = all(dir.path());
    let mut shuffled = tensors(&dir.path().join("moco"));
    shuffled.reverse();
    for (index, tensor) in shuffled.iter_mut().enumerate() {
        tensor.name = format!("what.ever.{:x}", index * 7919 % 1009);
        // A side of length 1 more is no other tensor.
        tensor.shape.insert(0, 1);
    }
    let path = dir.path().join("x.safetensors");
    for (dtype, sameness) in [
        (Dtype::F32, Sameness::Exact),
        (Dtype::F64, Sameness::Exact),
        (Dtype::F16, Sameness::Half),
        (Dtype::BF16, Sameness::Brain),
    ] {
        write(&path, &shuffled, dtype);
        let found = identify(&path, &known, &mut go_on).unwrap();
        assert_eq!(only(&found), ("moco", Relation::Same, Some(sameness), true), "{dtype}");
    }
    // Rounded and stored wide again, it is still the rounded copy.
    for value in shuffled.iter_mut().flat_map(|tensor| &mut tensor.values) {
        *value = f16::from_f32(*value).to_f32();
    }
    write(&path, &shuffled, Dtype::F32);
    assert_eq!(only(&identify(&path, &known, &mut go_on).unwrap()).2, Some(Sameness::Half));
}

#[test]
fn the_networks_of_a_full_checkpoint_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let known = all(dir.path());
    let found = identify(&fixture("ibot_checkpoint_full.pth"), &known, &mut go_on).unwrap();
    let at = |place: &str| {
        let finding = found.findings.iter().find(|finding| finding.place.starts_with(place));
        finding.unwrap_or_else(|| panic!("no {place}: {found:?}")).is.as_ref()
    };
    let teacher = at("teacher").unwrap();
    assert_eq!((teacher.model.as_str(), teacher.relation), ("ibot", Relation::Same));
    assert_eq!(teacher.branch.as_deref(), Some("teacher"));
    assert_ne!(at("student").map(|is| is.relation), Some(Relation::Same), "the student is not the teacher");
    let found = identify(&fixture("mocov3_vit_tiny.pth.tar"), &known, &mut go_on).unwrap();
    let same =
        found.findings.iter().filter(|finding| finding.is.as_ref().is_some_and(|is| is.relation == Relation::Same));
    let places: Vec<&str> = same.map(|finding| finding.place.as_str()).collect();
    assert_eq!(places.len(), 1, "{found:?}");
    assert!(places[0].contains("base_encoder"), "{places:?}");
}

/// A teacher is a running mean of its student: nearly the same values, no tensor equal.
#[test]
fn a_student_beside_its_teacher_is_named_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let known = all(dir.path());
    let (mut state, mut both) = (3, Vec::new());
    for tensor in tensors(&dir.path().join("ibot")) {
        let scale = tensor.values.iter().map(|value| value.abs()).sum::<f32>() / tensor.values.len() as f32;
        let values = tensor.values.iter().map(|value| value + 0.2 * scale * noise(&mut state)).collect();
        both.push(Tensor { name: format!("student.backbone.{}", tensor.name), shape: tensor.shape.clone(), values });
        both.push(Tensor { name: format!("teacher.backbone.{}", tensor.name), ..tensor });
    }
    let path = dir.path().join("full.safetensors");
    write(&path, &both, Dtype::F32);
    let found = identify(&path, &known, &mut go_on).unwrap();
    let [student, teacher] = [0, 1].map(|index| found.findings[index].is.as_ref().unwrap());
    assert_eq!((found.findings[0].place.as_str(), student.relation), ("student.backbone", Relation::Relative));
    assert_eq!((found.findings[1].place.as_str(), teacher.relation), ("teacher.backbone", Relation::Same));
    assert!(student.likeness.unwrap() > 0.9, "{student:?}");
    let says = "the student of the run whose teacher it is, which lies beside it in `teacher.backbone`";
    assert_eq!(student.reading, says);
}

#[test]
fn fine_tuned_weights_are_relatives_and_others_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let known = all(dir.path());
    let path = dir.path().join("x.safetensors");
    let likeness = |amount: f32| {
        let (mut state, mut changed) = (5, tensors(&dir.path().join("mae")));
        for tensor in &mut changed {
            let scale = tensor.values.iter().map(|value| value.abs()).sum::<f32>() / tensor.values.len() as f32;
            tensor.values.iter_mut().for_each(|value| *value += amount * scale * noise(&mut state));
        }
        let head = (0..1600).map(|_| noise(&mut state)).collect();
        changed.push(Tensor { name: "head.weight".into(), shape: vec![100, 16], values: head });
        write(&path, &changed, Dtype::F32);
        let found = identify(&path, &known, &mut go_on).unwrap();
        assert_eq!(only(&found), ("mae", Relation::Relative, None, false), "{amount}: {found:?}");
        found.findings[0].is.as_ref().unwrap().likeness.unwrap()
    };
    let (little, more) = (likeness(0.05), likeness(0.5));
    assert!(little > 0.995 && more < little && more > 0.8, "{little} {more}");
    // Another run of the same method has the same position table and nothing else.
    let mut state = 7;
    let mut other = tensors(&dir.path().join("mae"));
    for tensor in other.iter_mut().filter(|tensor| tensor.name != "pos_embed") {
        tensor.values.iter_mut().for_each(|value| *value = noise(&mut state));
    }
    write(&path, &other, Dtype::F32);
    let found = identify(&path, &known, &mut go_on).unwrap();
    assert!(found.findings.iter().all(|finding| finding.is.is_none()), "{found:?}");
    // And none of the fixtures is another one's relative.
    for (file, name) in [("mocov3_vit_tiny.pth.tar", "moco"), ("mae_full_checkpoint-799.pth", "mae")] {
        let strangers: Vec<Fingerprint> = known.iter().filter(|known| known.model != name).cloned().collect();
        let found = identify(&fixture(file), &strangers, &mut go_on).unwrap();
        assert!(found.findings.iter().all(|finding| finding.is.is_none()), "{file}: {found:?}");
    }
}

#[test]
fn what_is_frozen_and_what_is_cut_off_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let known = all(dir.path());
    let path = dir.path().join("x.safetensors");
    let mut state = 9;
    let mut half = tensors(&dir.path().join("mae"));
    for tensor in
        half.iter_mut().filter(|tensor| tensor.name.starts_with("blocks.3") || tensor.name.starts_with("norm"))
    {
        tensor.values.iter_mut().for_each(|value| *value += 0.1 * noise(&mut state));
    }
    write(&path, &half, Dtype::F32);
    let found = identify(&path, &known, &mut go_on).unwrap();
    assert_eq!(only(&found), ("mae", Relation::Shares, Some(Sameness::Exact), false));
    half.retain(|tensor| tensor.name.starts_with("blocks.1") || tensor.name.starts_with("blocks.0"));
    write(&path, &half, Dtype::F32);
    let found = identify(&path, &known, &mut go_on).unwrap();
    assert_eq!(only(&found), ("mae", Relation::PartOf, Some(Sameness::Exact), false));
    let share = found.findings[0].is.as_ref().unwrap().share;
    assert!((0.2..0.3).contains(&share), "{share}");
}

#[test]
fn fingerprints_are_kept_and_damaged_ones_are_named() {
    let dir = tempfile::tempdir().unwrap();
    model("mae_pretrain_vit_tiny.pth", "mae", None, &dir.path().join("mae"));
    let folder = dir.path().join("fingerprints");
    assert_eq!(known(&folder).unwrap(), []);
    remember(&folder, "mae", &dir.path().join("mae"), &mut go_on).unwrap();
    let kept = known(&folder).unwrap();
    assert_eq!(only(&identify(&fixture("mae_pretrain_vit_tiny.pth"), &kept, &mut go_on).unwrap()).0, "mae");
    let path = folder.join("mae.json");
    let good = std::fs::read_to_string(&path).unwrap();
    for (from, to) in
        [("\"format\":1", "\"format\":2"), ("\"exact\":\"", "\"exact\":\"0"), ("{\"format\"", "{\"x\":1,\"format\"")]
    {
        std::fs::write(&path, good.replacen(from, to, 1)).unwrap();
        let error = known(&folder).unwrap_err();
        assert!(matches!(error, IdentifyError::Fingerprint { .. }) && error.in_full().contains("mae.json"), "{error}");
    }
    let error = identify(&path, &kept, &mut go_on).unwrap_err();
    assert!(matches!(error, IdentifyError::Checkpoint(_)), "{error}");
}

#[cfg(feature = "cli")]
#[test]
fn the_program_says_whose_weights_they_are_with_licence_and_lineage() {
    let dir = tempfile::tempdir().unwrap();
    let run = |code: i32, arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tec-zoo"));
        let command = command.args(arguments).env("TEC_ZOO_HOME", dir.path().join("home")).current_dir(dir.path());
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let tec = fixture("tec_checkpoint-299.pth");
    let tec = tec.to_str().unwrap();
    assert!(run(3, &["identify", tec]).contains("nothing known resembles it"));
    run(0, &["convert", tec, "--heads", "4", "--out", "mine"]);
    run(0, &["register", "mine", "--name", "my-tec"]);
    let text = run(0, &["identify", tec]);
    assert!(text.contains("my-tec") && text.contains("licence "), "{text}");
    let json: serde_json::Value = serde_json::from_str(&run(0, &["identify", tec, "--json"])).unwrap();
    let is = &json["networks"][0]["is"];
    assert_eq!((&is["model"], &is["relation"]), (&"my-tec".into(), &"same".into()), "{json}");
    assert!(is["licence"]["spdx"].is_string() && is["lineage"].is_array() && is["terms_with_lineage"].is_string());
}
