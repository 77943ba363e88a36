//! What files promise, and consumers that expect something else.

use super::*;
use crate::words::InFull;
use serde_json::{Value, json};
use tec_zoo::onnx::{Contract, ContractError, Expectation, LevelNorm, MapOptions};

/// The contract of a model's export.
fn promised(model: &Canonical, dir: &tempfile::TempDir, purpose: Purpose, size: Size) -> Contract {
    let path = file(dir, "x.onnx");
    export(model, &path, &ExportOptions { purpose, size, ..Default::default() }).unwrap();
    Contract::of_graph(&path).unwrap()
}

/// A model of twelve blocks with patches of 16 pixels, as consumers know them.
fn vit(dir: &Path, family: &str) -> Canonical {
    let resample = if family == "mae" { Resample::Size } else { Resample::ScaleOffset { offset: 0.1 } };
    let image_size = [32, 32];
    let nano = Nano { adapters: false, depth: 12, patch: 16, image_size, resample, ..Nano::default() }.write(dir);
    let mut config = nano.config().clone();
    config.family = family.to_owned();
    let json = json!({ "tec_zoo": config });
    std::fs::write(dir.join("config.json"), serde_json::to_vec(&json).unwrap()).unwrap();
    Canonical::open(dir).unwrap()
}

fn consumer(name: &str) -> Expectation {
    Expectation::of_consumer(name).unwrap().unwrap()
}

fn fields(contract: &Contract, expectation: &Expectation) -> Vec<String> {
    contract.differences(expectation).into_iter().map(|difference| difference.field).collect()
}

/// The expectations of a file with these lines.
fn lines(dir: &tempfile::TempDir, text: &str) -> Result<Expectation, ContractError> {
    let path = file(dir, "expected.toml");
    std::fs::write(&path, text).unwrap();
    Expectation::of_file(&path)
}

#[test]
fn an_export_for_a_consumer_is_what_that_consumer_expects() {
    let dir = tempfile::tempdir().unwrap();
    let (mae, ibot) = (vit(&file(&dir, "mae"), "mae"), vit(&file(&dir, "ibot"), "ibot"));
    let plain = MapOptions::default;
    for (model, purpose, name) in [
        (&mae, Purpose::UperNet(plain()), "mmseg-mae-upernet"),
        (&ibot, Purpose::UperNet(plain()), "ibot-upernet"),
        (&ibot, Purpose::CascadeMaskRcnn(plain()), "ibot-cascade-mask-rcnn"),
        (&mae, Purpose::VitDet, "detectron2-vitdet"),
        (&mae, Purpose::VitDet, "mmdet-vitdet"),
    ] {
        let contract = promised(model, &dir, purpose, Size::Native);
        assert_eq!(contract.differences(&consumer(name)), [], "{name}");
        // A model does not yet say what an export of it will be.
        assert_eq!(Contract::of_model(model).differences(&consumer(name)), [], "{name}");
    }
}

#[test]
fn every_mismatch_is_named_with_what_goes_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let ibot = vit(&file(&dir, "ibot"), "ibot");
    let normed = MapOptions { norm: Some(LevelNorm::Final), ..MapOptions::default() };
    let expected = consumer("mmseg-mae-upernet");
    let contract = promised(&ibot, &dir, Purpose::UperNet(normed), Size::Native);
    let differences = contract.differences(&expected);
    assert_eq!(fields(&contract, &expected), ["level_norm", "resample"]);
    assert_eq!((&differences[0].here, &differences[0].expected), (&Some(json!("final")), &json!("raw")));
    assert!(differences[0].why.contains("final norm") && differences[0].next.to_string().contains("`norm`: raw"));

    let others = MapOptions { levels: vec![2, 5, 8, 11], ..MapOptions::default() };
    let contract = promised(&ibot, &dir, Purpose::CascadeMaskRcnn(others), Size::Fixed([64, 64]));
    assert_eq!(fields(&contract, &expected), ["levels", "image_size", "resample"]);
    let three = Purpose::Levels(vec![3, 5, 7]);
    assert_eq!(fields(&promised(&ibot, &dir, three, Size::Dynamic), &expected), ["levels", "strides", "resample"]);
    let tokens = promised(&ibot, &dir, Purpose::Tokens, Size::Native);
    assert_eq!(fields(&tokens, &expected), ["levels", "strides", "level_norm", "image_size"]);
    assert_eq!(tokens.differences(&expected)[0].here, None);
    // Tokens with a class token, full attention.
    let windows = ["strides", "image_size", "prefix_tokens", "window", "global_blocks"];
    let differing = fields(&tokens, &consumer("detectron2-vitdet"));
    assert!(windows.iter().all(|field| differing.iter().any(|differing| differing == field)), "{differing:?}");
}

#[test]
fn mean_and_std_are_compared_as_numbers_in_either_scale() {
    let dir = tempfile::tempdir().unwrap();
    let model = vit(&file(&dir, "mae"), "mae");
    let contract = promised(&model, &dir, Purpose::Tokens, Size::Native);
    let differing = |text: &str| fields(&contract, &lines(&dir, text).unwrap());
    assert_eq!(differing("mean = [0.485, 0.456, 0.406]\nstd = [58.395, 57.12, 57.375]"), Vec::<String>::new());
    assert_eq!(differing("mean = [0.5, 0.5, 0.5]\nstd = [0.5, 0.5, 0.5]"), ["mean", "std"]);
    assert_eq!(differing("mean = [0.485, 0.456]"), ["mean"]);
    assert_eq!(differing("prefix_tokens = 5"), ["prefix_tokens"]);
    assert_eq!(differing("strides = { any = [[4], [16]] }"), ["strides"]);
    assert_eq!(differing("levels = { by_depth = { 24 = [1] } }"), Vec::<String>::new());
}

#[test]
fn a_rule_matters_where_the_table_is_resampled() {
    let dir = tempfile::tempdir().unwrap();
    let model = vit(&file(&dir, "ibot"), "ibot");
    for (size, differing) in
        [(Size::Native, vec![]), (Size::Fixed([64, 64]), vec!["resample"]), (Size::Dynamic, vec!["resample"])]
    {
        let contract = promised(&model, &dir, Purpose::Tokens, size);
        let antialias = lines(&dir, "resample = { rule = \"size-antialias\" }").unwrap();
        assert_eq!(fields(&contract, &antialias), differing, "{size:?}");
        let own = lines(&dir, "resample = { rule = \"scale-offset\", offset = 0.1 }").unwrap();
        assert_eq!(contract.differences(&own), []);
    }
    // iBOT's family resamples otherwise than detectron2 does: the export has to be told.
    let contract = promised(&model, &dir, Purpose::VitDet, Size::Native);
    assert_eq!(fields(&contract, &consumer("detectron2-vitdet")), ["resample"]);
}

#[test]
fn pixels_for_normalised_images_and_narrow_numbers_are_differences() {
    let dir = tempfile::tempdir().unwrap();
    let model = vit(&file(&dir, "mae"), "mae");
    let path = file(&dir, "x.onnx");
    let of = |normalize_input: bool, dtype: tec_zoo::onnx::Dtype| {
        let purpose = Purpose::UperNet(MapOptions::default());
        export(&model, &path, &ExportOptions { purpose, normalize_input, dtype, ..Default::default() }).unwrap();
        Contract::of_graph(&path).unwrap()
    };
    use tec_zoo::onnx::Dtype::{F16, F32};
    assert_eq!(fields(&of(true, F32), &consumer("mmseg-mae-upernet")), ["layout"]);
    assert_eq!(fields(&of(false, F16), &consumer("mmseg-mae-upernet")), Vec::<String>::new());
    let single = Expectation::of_contract(&of(false, F32));
    assert_eq!(fields(&of(false, F16), &single), ["dtype"]);
}

#[test]
fn a_model_and_its_exports_say_the_same_and_two_exports_differ_where_they_do() {
    let dir = tempfile::tempdir().unwrap();
    let model = vit(&file(&dir, "mae"), "mae");
    let whole = Contract::of_model(&model);
    let tokens = promised(&model, &dir, Purpose::Tokens, Size::Native);
    for (field, value) in &whole.facts {
        assert_eq!(tokens.facts.get(field), Some(value), "{field}");
    }
    assert_eq!(tokens.differences(&Expectation::of_contract(&whole)), []);
    assert_eq!(tokens.differences(&Expectation::of_contract(&tokens)), []);
    let larger = promised(&model, &dir, Purpose::Tokens, Size::Fixed([64, 64]));
    assert_eq!(fields(&larger, &Expectation::of_contract(&tokens)), ["inputs", "outputs", "image_size", "grid"]);
    // Another file of the same family: the weights' hash tells.
    let mut config = model.config().clone();
    config.provenance.source_sha256 = "1".repeat(64);
    let other = file(&dir, "other");
    std::fs::create_dir(&other).unwrap();
    std::fs::copy(model.dir().join("model.safetensors"), other.join("model.safetensors")).unwrap();
    std::fs::write(other.join("config.json"), json!({ "tec_zoo": config }).to_string()).unwrap();
    let other = Contract::of_model(&Canonical::open(&other).unwrap());
    assert_eq!(fields(&tokens, &Expectation::of_contract(&other)), ["source_sha256"]);
}

#[test]
fn hashes_of_digits_stay_texts_and_fields_keep_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let model = vit(&file(&dir, "mae"), "mae");
    let mut config = model.config().clone();
    config.provenance.source_sha256 = "1".repeat(64);
    std::fs::write(model.dir().join("config.json"), json!({ "tec_zoo": config }).to_string()).unwrap();
    let contract = Contract::of_model(&Canonical::open(model.dir()).unwrap());
    assert_eq!(contract.facts["source_sha256"], Value::String("1".repeat(64)));
    let graph = promised(&model, &dir, Purpose::Tokens, Size::Native);
    let place = |field: &str| graph.facts.get_index_of(field).unwrap();
    assert!(place("inputs") < place("model") && place("mean") < place("width") && place("width") < place("licence"));
    assert_eq!(graph.facts["inputs"][0]["shape"], json!(["batch", 3, 32, 32]));
}

#[test]
fn what_is_no_expectation_or_no_contract_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |text: &str| lines(&dir, text).unwrap_err().in_full();
    assert!(refused("level_nrom = \"raw\"").contains("did you mean `level_norm`"));
    assert!(refused("levels = ").contains("is no list of expectations"));
    assert!(refused("").contains("expects nothing"));
    assert!(refused(&"#".repeat(2 << 20)).contains("larger than 1 MiB"));
    assert!(Expectation::of_consumer("no such consumer").is_none());
    let absent = Expectation::of_file(&file(&dir, "absent.toml")).unwrap_err().in_full();
    assert!(absent.contains("absent.toml"), "{absent}");

    // Another tool's file: a graph, and nothing about it.
    let bare = file(&dir, "bare.onnx");
    std::fs::write(&bare, [0x08, 8, 0x3a, 0]).unwrap();
    let refused = Contract::of_graph(&bare).unwrap_err();
    assert!(matches!(refused, ContractError::Absent { .. }), "{refused}");
    assert!(matches!(Contract::of_graph(&file(&dir, "expected.toml")), Err(ContractError::Read(_))));
}

#[test]
fn every_consumer_of_the_folder_is_embedded_and_parses() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/zoo/consumers");
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    names.sort();
    assert_eq!(tec_zoo::onnx::CONSUMERS.iter().map(|(name, _)| *name).collect::<Vec<_>>(), names);
    for name in &names {
        consumer(name);
    }
}

#[test]
fn adapters_are_kept_with_every_purpose_in_every_runtime() {
    let dir = tempfile::tempdir().unwrap();
    let model = Nano::default().write(&file(&dir, "nano"));
    let plain = MapOptions::default;
    for purpose in [
        Purpose::Tokens,
        Purpose::Classification,
        Purpose::Levels(vec![0, 4]),
        Purpose::UperNet(plain()),
        Purpose::CascadeMaskRcnn(MapOptions { parameter_free: true, ..plain() }),
        Purpose::VitDet,
    ] {
        for (target, able) in [(Target::Portable, runtimes()), (Target::Ort, without_candle())] {
            let path = file(&dir, "x.onnx");
            let size = Size::Fixed([32, 24]);
            let adapters = Adapters::Keep;
            let options = ExportOptions { purpose: purpose.clone(), target, adapters, size, ..Default::default() };
            export(&model, &path, &options).unwrap();
            agrees(&model, &path, [32, 24], &able);
            let info = ModelInfo::open(&path).unwrap();
            let output = |name: &str| info.outputs.iter().find(|output| output.name == name).unwrap();
            let ranks = if purpose.maps(model.config()).unwrap().is_some() { 4 } else { 3 };
            for name in ["adapted", "adapted_group0", "adapted_group1"] {
                assert_eq!(output(name).dims.len(), ranks, "{purpose:?}: {name}");
            }
            assert_eq!(info.metadata["adapters"], "kept");
        }
    }
}
