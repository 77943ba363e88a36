//! The tensor that a call in the pickle would make.

use super::{MAX_DEPTH, Storages, Tensor, Walker};
use crate::checkpoint::error::shown;
use crate::checkpoint::globals::{self, Rebuild};
use crate::checkpoint::pickle::{Id, Node};
use crate::checkpoint::place::Place;

/// A parameter of a subclass of a tensor: more wrappers than that no trainer makes.
const MAX_WRAPPERS: usize = 4;

impl Walker<'_> {
    /// What calling `name`, which is of kind `rebuild`, makes of `args`.
    pub(super) fn tensor(
        &mut self,
        rebuild: Rebuild,
        name: &str,
        args: &[Id],
        wrappers: usize,
    ) -> Result<Tensor, String> {
        if wrappers > MAX_WRAPPERS {
            return Err(format!("it is wrapped more than {MAX_WRAPPERS} times"));
        }
        let short = || format!("`{name}` was called with {} arguments", args.len());
        match rebuild {
            Rebuild::Strided => match args {
                &[storage, offset, shape, strides, ..] => self.strided(storage, offset, shape, strides, None),
                _ => Err(short()),
            },
            Rebuild::StridedTyped => match args {
                &[storage, offset, shape, strides, _, _, dtype, ..] => {
                    self.strided(storage, offset, shape, strides, Some(dtype))
                }
                _ => Err(short()),
            },
            Rebuild::Wrapper => match args {
                &[inner, ..] => self.wrapped(inner, wrappers),
                [] => Err(short()),
            },
            Rebuild::Subclass => match args {
                &[function, _, args, ..] => self.called(function, args, wrappers),
                _ => Err(short()),
            },
            Rebuild::Unsupported => {
                Err(format!("`{name}` makes it, which is not supported: sparse, quantised, or without values"))
            }
        }
    }

    fn called(&mut self, function: Id, args: Id, wrappers: usize) -> Result<Tensor, String> {
        let arena = self.arena;
        let name = arena.global(function).unwrap_or_default();
        match globals::rebuild(name) {
            Some(rebuild) => self.tensor(rebuild, name, arena.sequence(args).unwrap_or_default(), wrappers + 1),
            None => Err("it is wrapped around something that is no tensor".into()),
        }
    }

    fn wrapped(&mut self, id: Id, wrappers: usize) -> Result<Tensor, String> {
        match self.arena.get(id) {
            Node::Object(object) => self.called(object.function, object.args, wrappers),
            Node::Persistent(key) => match self.storages {
                Storages::Tensors(tensors) => {
                    let found = self.key(*key).and_then(|key| tensors.get(&key)).cloned();
                    found.ok_or_else(|| "it is a tensor that is not in the file".into())
                }
                Storages::Keyed(_) => Err("it is a storage where a tensor should be".into()),
            },
            _ => Err("it is a parameter without a tensor".into()),
        }
    }

    fn sizes(&self, id: Id, what: &str) -> Result<Vec<usize>, String> {
        let items = match self.arena.get(id) {
            // torch.Size((…)) in some files.
            Node::Object(object) => {
                self.arena.sequence(object.args).and_then(|args| self.arena.sequence(*args.first()?))
            }
            _ => self.arena.sequence(id),
        };
        let items = items.ok_or_else(|| format!("its {what} is no tuple"))?;
        if items.len() > MAX_DEPTH {
            return Err(format!("it has {} axes", items.len()));
        }
        let size = |&item| self.arena.size(item).ok_or_else(|| format!("its {what} holds no size"));
        items.iter().map(size).collect()
    }

    fn strided(
        &mut self,
        storage: Id,
        offset: Id,
        shape: Id,
        strides: Id,
        dtype: Option<Id>,
    ) -> Result<Tensor, String> {
        let shape = self.sizes(shape, "shape")?;
        let strides = self.sizes(strides, "strides")?;
        let offset = self.arena.size(offset).ok_or("its offset is no size")?;
        let Node::Persistent(id) = *self.arena.get(storage) else { return Err("its storage is none".into()) };
        let Storages::Keyed(storages) = self.storages else { return Err("its storage is none".into()) };
        let &[kind, class, key, location, count, ref rest @ ..] =
            self.arena.sequence(id).ok_or("its storage has no description")?
        else {
            return Err("its storage is described too briefly".into());
        };
        if self.arena.str(kind) != Some("storage") {
            return Err("its storage is none".into());
        }
        if self.arena.str(location) == Some("meta") {
            return Err("it is on the `meta` device: the file holds its shape and no values".into());
        }
        let class = self.arena.global(class).ok_or("its storage has no class")?;
        let (unit, stored) = globals::storage(class).ok_or_else(|| format!("its storage is `{}`", shown(class)))?;
        let dtype = match dtype {
            Some(dtype) => {
                let name = self.arena.global(dtype).ok_or("its type has no name")?;
                globals::dtype(name)
                    .flatten()
                    .ok_or_else(|| format!("its type is `{}`, which is not supported", shown(name)))?
            }
            None => stored.ok_or_else(|| format!("its storage is `{class}`, which is not supported"))?,
        };
        self.spend_key(key).map_err(|error| error.to_string())?;
        let key = self.key(key).ok_or("its storage has no key")?;
        let range = storages.get(&key).ok_or_else(|| format!("its storage `{}` is not in the file", shown(&key)))?;
        let view = rest.first().copied().filter(|&view| !matches!(self.arena.get(view), Node::None));
        let range = match view {
            // A legacy view's count is sometimes its root's and sometimes its own.
            Some(view) => {
                let &[_, start, len] = self.arena.sequence(view).ok_or("its view is none")? else {
                    return Err("its view is none".into());
                };
                let bytes = |id| self.arena.size(id).and_then(|size| size.checked_mul(unit));
                let inside = bytes(start).zip(bytes(len)).and_then(|(start, len)| {
                    let start = range.start.checked_add(start)?;
                    Some(start..start.checked_add(len).filter(|&end| end <= range.end)?)
                });
                inside.ok_or("its view reaches beyond its storage")?
            }
            None => {
                let said = self.arena.size(count).and_then(|count| count.checked_mul(unit));
                if said != Some(range.len()) {
                    let said = said.map_or("too many".to_owned(), |said| said.to_string());
                    return Err(format!("its storage `{}` says {said} bytes and has {}", shown(&key), range.len()));
                }
                range.clone()
            }
        };
        let element = dtype.bitsize() / 8;
        let offset = offset.checked_mul(element).ok_or("its offset overflows")?;
        let place = Place::strided(self.source, range, offset, &shape, strides, element)?;
        Ok((dtype, shape, place))
    }
}
