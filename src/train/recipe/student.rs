//! Whose shape a student has: one of its own, or its base's (`student = "base"`).

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::model::{AxisOrder, Mlp, PositionConfig, PositionKind, Resample, VitConfig};

/// What a recipe says of a student that has its base's shape.
const BASE: &str = "base";

/// The student's architecture.
///
/// ```
/// use tec_zoo::train::{Recipe, Student};
///
/// let recipe = Recipe::load("nano", &["student=base".to_owned()])?;
/// assert_eq!(recipe.student, Student::Base);
/// # Ok::<(), tec_zoo::train::RecipeError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub enum Student {
    /// Its base's, once there is one.
    Base,
    /// This one; its `image_size` is the size images are cropped to.
    Own(Box<VitConfig>),
}

impl Student {
    /// The architecture; `None` where it is the base's and no base was named yet.
    pub fn vit(&self) -> Option<&VitConfig> {
        match self {
            Self::Base => None,
            Self::Own(vit) => Some(vit),
        }
    }

    /// A student of the shape of `base`: its image size, patches, widths, depth and heads. What a student never has (registers,
    /// LayerScale, a gated MLP, a learned position table) it does not take over.
    pub fn of(base: &VitConfig) -> Self {
        let position = PositionConfig {
            kind: PositionKind::SinCos { axis_order: AxisOrder::ColumnFirst },
            resample: Resample::Size,
        };
        let plain = VitConfig {
            mlp: Mlp::Plain,
            layer_scale: false,
            registers: 0,
            final_norm: true,
            position,
            class_token: true,
            window: None,
            relative_position: None,
            neck: None,
            classifier: None,
            adapters: None,
            decoder: None,
            ..base.clone()
        };
        Self::Own(Box::new(plain))
    }
}

impl Serialize for Student {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Base => serializer.serialize_str(BASE),
            Self::Own(vit) => vit.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Student {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Student;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "`\"{BASE}\"`, or the table of an architecture")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Student, E> {
                match text {
                    BASE => Ok(Student::Base),
                    text => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Student, A::Error> {
                VitConfig::deserialize(MapAccessDeserializer::new(map)).map(|vit| Student::Own(Box::new(vit)))
            }
        }

        deserializer.deserialize_any(Either)
    }
}
