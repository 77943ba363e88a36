//! Recipes are complete, strict, and say what the paper's tables say.

use tec_zoo::train::{Method, Recipe, Student, Target};
use tec_zoo::zoo::Zoo;

use crate::words::InFull;

fn load(name: &str) -> Recipe {
    Recipe::load(name, &[]).unwrap()
}

fn set(sets: &[&str]) -> Result<Recipe, String> {
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    Recipe::load("nano", &sets).map_err(|error| error.in_full())
}

#[test]
fn every_recipe_of_the_folder_is_embedded_and_holds_together() {
    let entries = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/recipes")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter_map(|name| name.strip_suffix(".toml").map(str::to_owned)).collect();
    names.sort();
    assert_eq!(Recipe::names().collect::<Vec<_>>(), names, "add the name to src/train/recipe/embedded.rs");
    let zoo = Zoo::embedded().unwrap();
    for name in &names {
        let recipe = load(name);
        if let Some(base) = &recipe.base {
            assert!(zoo.get(base).unwrap().tec.is_some(), "{name}: {base} has no k and tau");
        }
        let text = recipe.to_text().unwrap();
        assert_eq!(Recipe::parse(name, &text, &[]).unwrap(), recipe, "{name} does not survive being written");
    }
}

/// Tables 11 and 12, and the README's command lines.
#[test]
fn the_published_recipes_have_the_papers_settings() {
    let zoo = Zoo::embedded().unwrap();
    let expected = [
        ("tec-mae-vitb-300ep", 300, 768, 512, 15, 1.8),
        ("tec-mae-vitb-800ep", 800, 768, 512, 15, 1.8),
        ("tec-ibot-vitb-300ep", 300, 768, 512, 9, 1.0),
        ("tec-ibot-vitb-800ep", 800, 768, 512, 9, 1.0),
        ("tec-mae-vitl-300ep", 300, 1024, 768, 15, 1.4),
        ("tec-mae300ep-vitb-100ep", 100, 768, 512, 15, 1.8),
    ];
    for (name, epochs, width, decoder, k, tau) in expected {
        let recipe = load(name);
        let base = recipe.base.as_ref().and_then(|base| zoo.get(base).unwrap().tec);
        assert_eq!(recipe.method.top_k.or(base.map(|base| base.top_k)), Some(k), "{name}");
        assert_eq!(recipe.method.tau.or(base.map(|base| base.tau)), Some(tau), "{name}");
        assert_eq!((recipe.optimizer.epochs, recipe.student.vit().unwrap().width), (epochs, width), "{name}");
        let shape = recipe.method.decoder;
        assert_eq!((shape.width, shape.depth, shape.heads), (decoder, 2, 16), "{name}");
        assert_eq!((recipe.optimizer.batch, recipe.optimizer.warmup_epochs), (4096, 40.0), "{name}");
        assert!((recipe.peak_lr() - 2.4e-3).abs() < 1e-15, "{name}");
        assert_eq!((recipe.optimizer.betas, recipe.optimizer.weight_decay), ([0.9, 0.95], 0.05), "{name}");
        assert_eq!((recipe.method.mask_ratio, recipe.method.last_blocks), (0.75, 2), "{name}");
        assert_eq!((recipe.data.scale, recipe.data.flip, recipe.run.seed), ([0.2, 1.0], 0.5, 5), "{name}");
        assert_eq!(recipe.method.target, Target::FeatureAndAttention, "{name}");
        assert!(recipe.method.input_adapter() && recipe.method.encoder_adapter(), "{name}");
    }
}

#[test]
fn an_unknown_key_is_an_error_with_its_line_and_column() {
    let text = load("nano").to_text().unwrap().replace("warmup_epochs", "warm_epochs");
    let line = text.lines().position(|line| line.starts_with("warm_epochs")).unwrap() + 1;
    let error = Recipe::parse("mine.toml", &text, &[]).unwrap_err().in_full();
    assert!(error.starts_with("cannot use the recipe `mine.toml`: "), "{error}");
    assert!(error.contains(&format!("line {line}, column 1")), "{error}");
    assert!(error.contains("unknown field `warm_epochs`"), "{error}");
}

#[test]
fn every_ablation_of_table_6_is_a_setting() {
    for text in [
        "method.target=feature",
        "method.target=attention",
        "method.target=pixels",
        "method.normalise=none",
        "method.normalise=channel",
        "method.attention_rows=class",
        "method.attention_rows=all",
        "method.adapters=none",
        "method.adapters=input",
        "method.adapters=encoder",
        "method.initialise=base",
        "method.last_blocks=1",
        "method.norm_pix=true",
        "run.precision=bf16",
        "method.tau=0.5",
        "method.decoder.depth=1",
        "data.scale=[0.5, 1]",
        "student.position.resample.rule=size-antialias",
        "base=mae-vitb",
        "title=\"a = b\"",
    ] {
        let changed = set(&[text]).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_ne!(changed, load("nano"), "{text}");
    }
}

#[test]
fn a_wrong_override_says_what_is_wrong_and_what_was_meant() {
    for (text, expected) in [
        ("optimizer.base_rl=1", "did you mean `optimizer.base_lr`?"),
        ("epochs=3", "did you mean `optimizer.epochs`"),
        ("method.topk=3", "did you mean `method.top_k`?"),
        ("method.decoder=3", "no recipe has a key `method.decoder`"),
        ("nothing.like.it=3", "no recipe has a key `nothing.like.it`"),
        ("optimizer.epochs", "is not `key=value`"),
        ("optimizer.lr=1", "did you mean `optimizer.base_lr`, `optimizer.min_lr`?"),
        ("optimizer.momentum=1", "`[optimizer]` has `optimizer.base_lr`, "),
        ("optimizer.epochs=ten", "expected a whole number"),
        ("optimizer.epochs=1", "`optimizer.epochs` is 1, fewer than the 2 of `optimizer.warmup_epochs`"),
        ("optimizer.epochs=1", "`optimizer.epochs`: 1 `optimizer.warmup_epochs`: 0.1"),
        ("optimizer.base_lr=high", "expected a number"),
        ("run.recompute=1", "expected true or false"),
        ("run.watchdog_minutes=-1", "`run.watchdog_minutes` is -1; it must be between 0 and"),
        ("student=tiny", "expected `\"base\"`, or the table of an architecture"),
        ("optimizer.epochs=many", "cannot set `optimizer.epochs` to `many`"),
        ("optimizer.epochs=-1", "cannot set `optimizer.epochs` to `-1`"),
        ("optimizer.base_lr=nan", "`optimizer.base_lr` is NaN; it must be above 0"),
        ("run.precision=f8", "unknown variant `f8`, expected `f32` or `bf16`"),
        ("student.depth=4", "`method.blocks_per_group` 3 does not divide `student.depth` 4"),
        ("method.top_k=17", "an image has 16 patches"),
        ("method.mask_ratio=0.99", "keeps 0 of 16 patches"),
        ("data.scale=[1.0, 0.2]", "it is a range between 0 and 1"),
        ("student.layer_scale=true", "no recipe has a key `student.layer_scale`"),
        ("student.final_norm=false", "the student has a final norm"),
        ("optimizer.batch=33", "is not a multiple of `optimizer.micro_batch` 16"),
        ("optimizer.warmup_epochs=21", "fewer than the 21 of `optimizer.warmup_epochs`"),
    ] {
        let error = set(&[text]).unwrap_err();
        assert!(error.contains(expected), "{text}: {error}");
    }
    let error = Recipe::load("tec-mae-vitb-30ep", &[]).unwrap_err().in_full();
    assert!(error.contains("did you mean `tec-mae-vitb-300ep`"), "{error}");
    let error = Recipe::load("absent.toml", &[]).unwrap_err().in_full();
    assert!(error.starts_with("cannot read the recipe `absent.toml`"), "{error}");
}

#[test]
fn two_recipes_differ_in_what_touches_weights_and_in_nothing_else() {
    let same = set(&["run.watchdog_minutes=0", "data.workers=7", "run.save_steps=1", "run.keep_last=9", "title=other"])
        .unwrap();
    assert_eq!(load("nano").differences(&same), []);
    let other = set(&["optimizer.epochs=21", "method.top_k=4"]).unwrap();
    let differences = load("nano").differences(&other);
    let shown: Vec<String> = differences.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["`method.top_k` was 5 and is 4", "`optimizer.epochs` was 20 and is 21"]);
    let left_out = load("tec-mae-vitb-300ep").differences(&load("tec-mae300ep-vitb-100ep"));
    let tau = left_out.iter().find(|difference| difference.key == "method.tau").unwrap();
    assert_eq!(tau.to_string(), "`method.tau` was left out and is 1.8");
}

#[test]
fn a_recipe_of_an_older_version_is_watched_over_all_the_same() {
    let text = load("nano").to_text().unwrap();
    let older: String =
        text.lines().filter(|line| !line.starts_with("watchdog")).map(|line| format!("{line}\n")).collect();
    assert!(older.len() < text.len());
    let older = Recipe::parse("older", &older, &[]).unwrap();
    assert_eq!(load("nano").differences(&older), []);
    assert_eq!(older.run.watchdog_minutes, 30.0);
    assert!(set(&["run.watchdog_minutes=0"]).unwrap().run.watchdog().is_none());
}

#[test]
fn a_students_shape_can_be_its_bases() {
    let recipe = set(&["student=base"]).unwrap();
    assert_eq!(recipe.student, Student::Base);
    assert!(Recipe::load("nano-pixels", &["student=base".to_owned()]).unwrap().needs_base());
    let text = recipe.to_text().unwrap();
    assert!(text.contains("student = \"base\"\n"), "{text}");
    assert_eq!(Recipe::parse("written", &text, &[]).unwrap(), recipe);
    let zoo = Zoo::embedded().unwrap();
    for manifest in zoo.iter() {
        let resolved = recipe.with_student_of(&manifest.vit);
        let (student, base) = (resolved.student.vit().unwrap(), &manifest.vit);
        assert_eq!((student.width, student.depth, student.heads), (base.width, base.depth, base.heads));
        assert_eq!((student.image_size, student.patch_size), (base.image_size, base.patch_size));
        // What nobody can be a student with is left out: the recipe holds for every released model.
        let fits = Recipe { method: Method { blocks_per_group: 1, ..resolved.method.clone() }, ..resolved.clone() };
        fits.validate().unwrap_or_else(|reason| panic!("{}: {reason}", manifest.name));
    }
    let error = set(&["student=base", "student.width=64"]).unwrap_err();
    assert!(error.contains("the student has its base's shape"), "{error}");
}
