//! The manifests of `zoo/` against each other, the architecture and the converters; overlays; licences.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tec_zoo::zoo::{Digest, Manifest, Status, Terms, Zoo};

use crate::words::InFull;

fn root(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)
}

fn names_in(folder: &str) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(root(folder))
        .unwrap()
        .filter_map(|entry| Some(entry.unwrap().file_name().to_str()?.strip_suffix(".toml")?.to_owned()))
        .collect();
    names.sort();
    names
}

#[test]
fn every_manifest_of_the_folder_is_embedded_and_parses() {
    let embedded: Vec<String> = Zoo::embedded().unwrap().iter().map(|manifest| manifest.name.clone()).collect();
    assert_eq!(embedded, names_in("zoo"), "add the name to src/zoo/embedded.rs");
    assert!(embedded.len() >= 39);
}

#[test]
fn every_family_the_project_promises_is_there() {
    let zoo = Zoo::embedded().unwrap();
    let mut count = BTreeMap::new();
    for manifest in zoo.iter() {
        *count.entry(manifest.family.as_str()).or_insert(0) += 1;
    }
    let expected = [("dino", 4), ("dinov2", 8), ("ibot", 7), ("mae", 12), ("moco-v3", 2), ("tec", 6)];
    assert_eq!(count, BTreeMap::from(expected));
    assert_eq!(zoo.families(), expected.map(|(family, _)| family));
    assert_eq!(zoo.list(Some("tec")).len(), 6);
    assert!(zoo.list(Some("no such family")).is_empty());
}

/// Size, tensors without registers, parameters without and with registers.
const DINOV2: [(&str, usize, u64, u64); 4] = [
    ("s", 174, 22_056_192, 22_057_344),
    ("b", 174, 86_579_712, 86_582_016),
    ("l", 342, 304_367_616, 304_370_688),
    ("g", 566, 1_136_479_232, 1_136_483_840),
];

/// Tensors, parameters and fp32 bytes of whole files, counted from the authors' code.
#[test]
fn parameters_follow_from_the_architecture_and_agree_with_the_counted_files() {
    let zoo = Zoo::embedded().unwrap();
    let encoder_only = [
        ("mocov3-vits", 150, 21_665_664_u64, 86_662_656_u64),
        ("ibot-vits", 150, 21_665_664, 86_662_656),
        ("dino-vits16", 150, 21_665_664, 86_662_656),
        ("mae-vitb", 150, 85_798_656, 343_194_624),
        ("mae-vitb-full", 150, 85_798_656, 343_194_624),
        ("ibot-vitb", 150, 85_798_656, 343_194_624),
        ("ibot-vitb-22k", 150, 85_798_656, 343_194_624),
        ("dino-vitb16", 150, 85_798_656, 343_194_624),
        ("mocov3-vitb", 150, 85_798_656, 343_194_624),
        ("tec-mae-vitb-300ep", 148, 85_797_120, 343_188_480),
        ("tec-ibot-vitb-800ep", 148, 85_797_120, 343_188_480),
        ("mae-vitl", 294, 303_301_632, 1_213_206_528),
        ("ibot-vitl-randmask", 294, 303_301_632, 1_213_206_528),
        ("tec-mae-vitl-300ep", 292, 303_299_584, 1_213_198_336),
        ("mae-vith", 390, 630_764_800, 2_523_059_200),
    ];
    for (name, tensors, parameters, bytes) in encoder_only {
        let manifest = zoo.get(name).unwrap();
        assert_eq!(tec_zoo::model::vit_parameters(&manifest.vit).len(), tensors, "{name}");
        assert_eq!(manifest.parameters(), parameters, "{name}");
        assert_eq!(manifest.parameters() * 4, bytes, "{name}");
    }
    // DINOv2's own count for ViT-B includes the mask token, which no use of the features needs.
    assert_eq!(zoo.get("dinov2-vitb14").unwrap().parameters() + 768, 86_580_480);
    // What `timm.create_model` makes of its names for them, counted.
    for (s, tensors, plain, with) in DINOV2 {
        let [without, registers] = ["", "-reg"].map(|reg| zoo.get(&format!("dinov2-vit{s}14{reg}")).unwrap());
        assert_eq!((without.parameters(), registers.parameters()), (plain, with), "{s}");
        assert_eq!(tec_zoo::model::vit_parameters(&without.vit).len(), tensors, "{s}");
        // Four registers more, and no row of the position table for the class token.
        assert_eq!(registers.parameters() - without.parameters(), 3 * without.vit.width as u64);
    }
}

/// A file is its tensors plus a container's overhead: some 360 bytes a tensor in a torch zip.
#[test]
fn stated_sizes_agree_with_the_architecture() {
    let zoo = Zoo::embedded().unwrap();
    let mut checked = 0;
    for manifest in zoo.iter() {
        for bytes in manifest.sources.iter().filter_map(|source| source.bytes) {
            let payload = manifest.parameters() * 4;
            let overhead =
                bytes.checked_sub(payload).unwrap_or_else(|| panic!("{}: smaller than its tensors", manifest.name));
            assert!(overhead < 150_000, "{}: {overhead} bytes beyond its tensors", manifest.name);
            checked += 1;
        }
    }
    assert!(checked >= 6);
}

#[test]
fn no_address_and_no_whole_hash_appears_twice() {
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    for manifest in Zoo::embedded().unwrap().iter() {
        for source in &manifest.sources {
            let digests = source.hashes.iter().map(Digest::to_string);
            for key in std::iter::once(source.address(None)).chain(digests) {
                let other = seen.insert(key.clone(), manifest.name.clone());
                assert_eq!(other, None, "{key} is in {} too", manifest.name);
            }
        }
    }
    assert!(seen.len() > 60);
}

#[test]
fn every_source_is_https_and_says_where_its_facts_are_stated() {
    for manifest in Zoo::embedded().unwrap().iter() {
        assert_eq!(manifest.directory, None);
        assert!(!manifest.sources.is_empty(), "{}", manifest.name);
        assert!(!manifest.citation.is_empty() && !manifest.licence.evidence.is_empty(), "{}", manifest.name);
        for source in &manifest.sources {
            assert!(source.address(None).starts_with("https://"), "{}", manifest.name);
            assert!(!source.evidence.is_empty() && !source.file_name().is_empty(), "{}", manifest.name);
        }
    }
}

#[test]
fn facts_no_tensor_tells_are_the_authors_own() {
    let zoo = Zoo::embedded().unwrap();
    let heads = |name: &str| zoo.get(name).unwrap().vit.heads;
    assert_eq!([heads("mocov3-vits"), heads("ibot-vits"), heads("dino-vits8")], [12, 6, 6]);
    assert_eq!([heads("mae-vitb"), heads("mae-vitl"), heads("mae-vith"), heads("dinov2-vitg14")], [12, 16, 16, 24]);
    assert!(zoo.iter().all(|manifest| manifest.vit.norm_eps == 1e-6));
    let tec = |name: &str| zoo.get(name).unwrap().tec.map(|tec| (tec.top_k, tec.tau));
    assert_eq!(tec("mae-vitb"), Some((15, 1.8)));
    assert_eq!(tec("mae-vitl"), Some((15, 1.4)));
    assert_eq!(tec("ibot-vitb"), Some((9, 1.0)));
    assert_eq!(tec("mocov3-vitb"), None);
}

#[test]
fn every_released_model_can_be_used() {
    for manifest in Zoo::embedded().unwrap().iter() {
        assert_eq!((manifest.status, &manifest.reason), (Status::Ready, &None), "{}", manifest.name);
    }
}

#[test]
fn a_licence_follows_the_base_models() {
    let zoo = Zoo::embedded().unwrap();
    let models = |name: &str| zoo.lineage(name).unwrap().into_iter().map(|step| step.model).collect::<Vec<_>>();
    assert_eq!(models("tec-mae-vitb-300ep"), ["tec-mae-vitb-300ep", "mae-vitb"]);
    assert_eq!(models("tec-ibot-vitb-800ep"), ["tec-ibot-vitb-800ep", "ibot-vitb", "ibot-vitb-randmask"]);
    assert_eq!(models("tec-mae300ep-vitb-100ep")[1], "MAE ViT-B/16 after 300 epochs, which was never released");
    assert_eq!(zoo.terms("tec-mae-vitb-300ep").unwrap(), Terms::NonCommercial);
    assert_eq!(zoo.terms("tec-ibot-vitb-300ep").unwrap(), Terms::TreatAsNonCommercial);
    assert_eq!(zoo.terms("ibot-vitb").unwrap(), Terms::Permissive);
}

#[test]
fn a_misspelt_name_gets_the_nearest_ones() {
    let zoo = Zoo::embedded().unwrap();
    for (asked, meant) in [
        ("ibot_vitb", "ibot-vitb"),
        ("moco-v3-vits", "mocov3-vits"),
        ("MAE-ViT-B", "mae-vitb"),
        ("dinovitb16", "dino-vitb16"),
    ] {
        let error = zoo.get(asked).unwrap_err().in_full();
        assert!(error.contains(&format!("did you mean `{meant}`")), "{error}");
    }
    let error = zoo.get("resnet50").unwrap_err().in_full();
    assert!(
        error.contains("`resnet50`") && error.contains("`list` shows all") && !error.contains("did you mean"),
        "{error}"
    );
}

#[test]
fn an_overlay_adds_overrides_where_it_says_so_and_refuses_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(root("zoo/mae-vitb.toml")).unwrap();
    std::fs::write(dir.path().join("mine.toml"), text.replace("name = \"mae-vitb\"", "name = \"mine\"")).unwrap();
    let overriding = text.replace("MAE ViT-B/16", "overridden");
    std::fs::write(dir.path().join("mae-vitb.toml"), &overriding).unwrap();
    std::fs::write(dir.path().join("notes.txt"), "not a manifest").unwrap();
    std::fs::write(dir.path().join(".half-written.toml"), "nor is").unwrap();
    let zoo = Zoo::with_overlay(dir.path()).unwrap();
    assert_eq!(zoo.iter().count(), Zoo::embedded().unwrap().iter().count() + 1);
    // A released model's name is not enough to stand in its place.
    assert!(zoo.get("mae-vitb").unwrap().title.starts_with("MAE ViT-B/16"));
    assert_eq!(zoo.ignored(), [dir.path().join("mae-vitb.toml")]);
    let replacing = overriding.replacen("family =", "replaces = true\nfamily =", 1);
    std::fs::write(dir.path().join("mae-vitb.toml"), replacing).unwrap();
    let zoo = Zoo::with_overlay(dir.path()).unwrap();
    assert!(zoo.get("mae-vitb").unwrap().title.starts_with("overridden"));
    assert!(zoo.ignored().is_empty());
    assert_eq!(zoo.get("mine").unwrap().family, "mae");

    std::fs::write(dir.path().join("other.toml"), &text).unwrap();
    let error = Zoo::with_overlay(dir.path()).unwrap_err().in_full();
    assert!(error.contains("other.toml") && error.contains("says `name = \"mae-vitb\"`"), "{error}");

    let missing = dir.path().join("not there");
    assert_eq!(Zoo::with_overlay(&missing).unwrap().iter().count(), Zoo::embedded().unwrap().iter().count());
}

#[test]
fn a_manifest_that_is_wrong_is_refused_with_the_reason() {
    let text = std::fs::read_to_string(root("zoo/mae-vitb.toml")).unwrap();
    let refused = |from: &str, to: &str, reason: &str| {
        assert!(text.contains(from), "{from}");
        let error = Manifest::parse("mae-vitb", &text.replacen(from, to, 1)).unwrap_err();
        assert!(error.contains(reason), "{from} → {to}: {error}");
    };
    refused("family =", "familie =", "unknown field `familie`");
    refused("sha256:aec5", "sha256:aec", "is not a hash");
    refused("md5-prefix:8cad7c", "md5-prefix:8CAD7C", "is not a hash");
    refused("https://dl.", "http://dl.", "is not https");
    refused("https://dl.fbaipublicfiles.com", "http://localhost.evil.example", "is not https");
    refused("mae_pretrain_vit_base.pth", "..", "does not end in a file name");
    refused("timm/vit_base_patch16_224.mae", "../escape", "is not `organisation/name`");
    refused("file = \"model.safetensors\"", "file = \"../model.safetensors\"", "is not `organisation/name`");
    refused("heads = 12", "heads = 7", "does not divide");
    refused("status = \"ready\"", "status = \"listed\"", "without a `reason`");
    refused("bytes = 343249461", "bytes = 0", "`bytes` is 0");
    refused("mlp_width = 3072", "mlp_width = 3072\nregisters = 1025", "`registers` is 1025");
    refused("converter = \"mae\"\n", "", "names no converter");
    refused("converter = \"mae\"", "converter = \"../mae\"", "is not a converter");
    assert!(Manifest::parse("mae-vitb", &text.replace("http", "url = 1\nhttp")).is_err());
}

#[test]
fn a_manifest_survives_being_written_and_read() {
    for manifest in Zoo::embedded().unwrap().iter() {
        let text = toml::to_string_pretty(manifest).unwrap();
        assert_eq!(&Manifest::parse(&manifest.name, &text).unwrap(), manifest);
    }
}

#[test]
fn every_converter_a_source_names_is_there_with_the_same_heads() {
    let mut used = std::collections::BTreeSet::new();
    for manifest in Zoo::embedded().unwrap().iter() {
        for source in manifest.sources.iter().filter(|source| source.converter.is_some()) {
            let converter = source.converter.clone().unwrap();
            let mapping = tec_zoo::convert::Mapping::builtin(&converter)
                .unwrap_or_else(|| panic!("{}: no converters/{converter}.toml", manifest.name));
            if let Some(branch) = &source.branch {
                assert!(mapping.branches().contains(&branch.as_str()), "{}: no branch {branch}", manifest.name);
            }
            let heads = mapping.published_heads(manifest.vit.width);
            assert!(heads.is_none_or(|heads| heads == manifest.vit.heads), "{}: {heads:?}", manifest.name);
            used.insert(converter);
        }
    }
    assert!(used.len() >= 7, "{used:?}");
}

#[test]
fn a_registered_model_is_in_the_catalogue_with_its_bases_terms() {
    let dir = tempfile::tempdir().unwrap();
    let (model, overlay) = (dir.path().join("model"), dir.path().join("zoo"));
    let checkpoint = root("fixtures/reference/tec_converted.pth");
    let request = tec_zoo::convert::Request { family: Some("tec".into()), heads: Some(4), ..Default::default() };
    let go_on = &mut |_| std::ops::ControlFlow::Continue(());
    tec_zoo::convert::convert(&checkpoint, &model, &request, go_on).unwrap();

    let written = tec_zoo::zoo::register(&overlay, "my-tec", &model, false).unwrap();
    assert_eq!(written, overlay.join("my-tec.toml"));
    let zoo = Zoo::with_overlay(&overlay).unwrap();
    let manifest = zoo.get("my-tec").unwrap();
    assert_eq!(manifest.directory.as_deref(), Some(model.as_path()));
    assert_eq!((manifest.vit.heads, manifest.status, manifest.summary().source.as_str()), (4, Status::Ready, "local"));
    assert_eq!(zoo.terms("my-tec").unwrap(), Terms::TreatAsNonCommercial);
    tec_zoo::model::Canonical::open(manifest.directory.as_ref().unwrap()).unwrap();

    for name in ["", "../escape", "Upper", "a b", ".hidden", "trailing."] {
        let error = tec_zoo::zoo::register(&overlay, name, &model, true).unwrap_err().in_full();
        assert!(error.contains("cannot be a model's name"), "{name}: {error}");
    }
    let error = tec_zoo::zoo::register(&overlay, "empty", dir.path(), false).unwrap_err().in_full();
    assert!(error.contains("not a model directory"), "{error}");
    assert_eq!(std::fs::read_dir(&overlay).unwrap().count(), 1, "a refused model left something behind");
}
