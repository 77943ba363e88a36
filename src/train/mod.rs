//! Pretraining: a new ViT learns to predict, from a part of the image, what a frozen base model makes of all of it.

pub mod distributed;
mod events;
mod method;
mod metrics;
mod recipe;
mod run;
mod schedule;
mod step;

pub use events::Events;
pub use method::{AttentionRows, ConditionalAdapters, DecoderShape, Initialise, Method, Normalise, Target};
pub use metrics::{Metrics, StepRecord};
pub use recipe::{Augmentation, Difference, Optimizer, Precision, Recipe, RecipeError, RunSettings, Student};
pub use run::{
    Base, BaseFile, Branch, BranchFile, CheckpointModel, EarlierData, End, News, Parent, Pretraining, Replay, Room,
    RunError, RunFile, RunModel, Stall, Started, Summary, checkpoint_name, is_run, pretrain, replay, started_recipe,
    started_run,
};
pub use schedule::Schedule;
use step::merged_class_token;
pub use step::{Intermediates, MicroBatch, Phase, Step, StepError, StepReport, StepSettings, StepState, Update};
