//! Where a run starts: at its newest whole checkpoint, if it is still the same run; at the beginning, if it has none.

use std::path::{Path, PathBuf};

use super::checkpoint::{self, Belongs};
use super::error::RunError;
use super::folder::{Folder, RunFile, started_recipe, started_run};
use super::{News, Pretraining, Watch};
use crate::train::distributed::World;
use crate::train::{Recipe, StepState};

/// Where a run goes on: its newest whole checkpoint.
pub(super) struct Resumed {
    pub(super) path: PathBuf,
    pub(super) belongs: Belongs,
    pub(super) state: StepState,
}

/// The folder, for rank 0, and the checkpoint every process goes on from, which rank 0 chooses.
pub(super) fn continued(
    settings: &Pretraining,
    recipe: &Recipe,
    about: &RunFile,
    world: &World,
    watch: &mut dyn Watch,
) -> Result<(Option<Folder>, Option<Resumed>), RunError> {
    const NONE: u64 = u64::MAX;
    let (mut folder, mut from) = (None, None);
    if world.rank() == 0 {
        let claimed = Folder::claim(&settings.out, settings.resume)?;
        refuse_another(&claimed, recipe, about)?;
        let mut damaged = |path: &Path, reason: &str| watch.hear(News::Damaged { path, reason });
        if let Some((path, belongs, state)) = checkpoint::newest(&claimed.checkpoints(), &mut damaged)? {
            refuse_another_checkpoint(&belongs, &claimed, recipe, about)?;
            from = Some(Resumed { path, belongs, state });
        }
        folder = Some(claimed);
    }
    let mut words = [from.as_ref().map_or(NONE, |from| from.belongs.step), about.images].map(u64::to_le_bytes).concat();
    world.broadcast(&mut words)?;
    let word = |at: usize| words[at * 8..].first_chunk().map_or(NONE, |word| u64::from_le_bytes(*word));
    if word(1) != about.images {
        let (was, is) = (format!("{} images", word(1)), format!("{} in rank {}", about.images, world.rank()));
        return Err(RunError::Other { path: settings.out.display().to_string(), what: "data", was, is });
    }
    if world.rank() != 0 && word(0) != NONE {
        let path = checkpoint::path(&settings.out.join(Folder::CHECKPOINTS), word(0));
        let invalid = |reason| RunError::Invalid { path: path.display().to_string(), reason };
        let (belongs, state) = checkpoint::read(&path).map_err(invalid)?;
        from = Some(Resumed { path, belongs, state });
    }
    Ok((folder, from))
}

/// What the files beside the checkpoints say.
fn refuse_another(folder: &Folder, recipe: &Recipe, about: &RunFile) -> Result<(), RunError> {
    if let Some(was) = started_recipe(folder.path())? {
        refuse_recipe(folder, &was, recipe)?;
    }
    let Some(was) = started_run(folder.path())? else { return Ok(()) };
    let sha256 = |run: &RunFile| run.base.as_ref().map(|base| base.sha256.clone());
    refuse_base(folder, sha256(&was), sha256(about))?;
    refuse_data(folder, was.images, about.images)
}

fn refuse_recipe(folder: &Folder, was: &Recipe, is: &Recipe) -> Result<(), RunError> {
    match was.differences(is) {
        differences if differences.is_empty() => Ok(()),
        differences => Err(RunError::OtherRecipe { path: folder.path().display().to_string(), differences }),
    }
}

fn refuse_base(folder: &Folder, was: Option<String>, is: Option<String>) -> Result<(), RunError> {
    if was == is {
        return Ok(());
    }
    let shown = |sha256: Option<String>| sha256.map_or("none".to_owned(), |sha256| format!("sha256 {sha256}"));
    Err(RunError::Other { path: folder.path().display().to_string(), what: "base", was: shown(was), is: shown(is) })
}

fn refuse_data(folder: &Folder, was: u64, is: u64) -> Result<(), RunError> {
    if was == is {
        return Ok(());
    }
    let shown = |images: u64| format!("{images} images");
    Err(RunError::Other { path: folder.path().display().to_string(), what: "data", was: shown(was), is: shown(is) })
}

/// What a checkpoint itself says: the files beside it may have been edited.
fn refuse_another_checkpoint(
    belongs: &Belongs,
    folder: &Folder,
    recipe: &Recipe,
    about: &RunFile,
) -> Result<(), RunError> {
    refuse_recipe(folder, &Recipe::parse("of the checkpoint", &belongs.recipe, &[])?, recipe)?;
    refuse_base(folder, belongs.base.clone(), about.base.as_ref().map(|base| base.sha256.clone()))?;
    refuse_data(folder, belongs.images, about.images)
}
