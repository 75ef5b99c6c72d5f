//! What layers share within a step.

use mlx_rs::error::Result;

use super::{
    Decoder,
    attention::View,
    cache::{Cache, KvForm},
    mask::{Mask, mask},
    rotary::Angles,
};

/// The views of a step: of layers with full attention, and of windowed ones. Only what some layer needs is made, and
/// what is equal in both is made once.
#[derive(Debug)]
pub(crate) enum Views {
    /// All layers are of one kind.
    One(View),
    /// Some are windowed, and some are not.
    Two { full: View, windowed: View },
}

impl Views {
    /// Those of `count` positions behind the tokens of `cache`. Where the windows of `decoder` are not all keys, they are
    /// equally many.
    pub(crate) fn new(decoder: &Decoder, cache: &Cache, count: usize) -> Result<Self> {
        let Decoder { windows, rotary, tables, dimensions: of, .. } = decoder;
        let position = cache.tokens;
        let angles = |windowed| {
            if of.kernels {
                return Ok(tables.angles(windowed, cache.long, position));
            }
            let frequencies = rotary.frequencies(windowed, cache.long);
            Angles::tables(frequencies, position, count, of.head_dim, of.activations)
        };
        let named =
            of.kernels && decoder.config.attention_soft_cap.is_none() && !matches!(of.kv, KvForm::Affine { .. });
        let mask = |window| mask(position, count, window, named, of.activations);
        Self::of_kinds(windows, rotary.local.is_some(), position, count, angles, mask)
    }

    /// The views of the kinds of layers there are. `local` says that windowed layers are rotated otherwise; `angles` makes
    /// the rotation of layers with windows or without, and `mask` the mask of those with this window.
    fn of_kinds(
        windows: &[Option<usize>],
        local: bool,
        position: usize,
        count: usize,
        angles: impl Fn(bool) -> Result<Angles>,
        mask: impl Fn(Option<usize>) -> Result<Option<Mask>>,
    ) -> Result<Self> {
        let view =
            |window: Option<usize>| Ok(View { angles: angles(window.is_some())?, mask: mask(window)?, position });
        let window = windows.iter().copied().find(Option::is_some).flatten();
        if window.is_none() || !windows.contains(&None) {
            return view(window).map(Self::One);
        }
        let full = view(None)?;
        let windowed = View {
            angles: if local { angles(true)? } else { full.angles.clone() },
            mask: match window {
                Some(window) if position + count > window => mask(Some(window))?,
                _ => full.mask.clone(),
            },
            position,
        };
        Ok(Self::Two { full, windowed })
    }

    /// That of a layer with this window.
    pub(crate) fn of(&self, window: Option<usize>) -> &View {
        match self {
            Self::One(view) | Self::Two { full: view, .. } if window.is_none() => view,
            Self::One(view) | Self::Two { windowed: view, .. } => view,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use llm_local_core::model::Rope;
    use mlx_rs::Dtype;

    use super::*;

    /// The views of a chunk, the windows that masks were made for, and whether angles were for windowed layers.
    fn views(
        windows: &[Option<usize>],
        local: bool,
        position: usize,
        count: usize,
    ) -> (Views, Vec<Option<usize>>, Vec<bool>) {
        let (masks, angles) = (RefCell::default(), RefCell::default());
        let rope = Rope::new(1e4, 8).resolve("m", 64, &mut |_| unreachable!()).unwrap();
        let of_kind = |windowed| {
            RefCell::<Vec<_>>::borrow_mut(&angles).push(windowed);
            Angles::tables(&rope.base, position, count, 8, Dtype::Float32)
        };
        let of_window = |window| {
            RefCell::<Vec<_>>::borrow_mut(&masks).push(window);
            mask(position, count, window, false, Dtype::Float32)
        };
        let views = Views::of_kinds(windows, local, position, count, of_kind, of_window).unwrap();
        (views, masks.into_inner(), angles.into_inner())
    }

    fn keys(view: &View) -> Option<i32> {
        view.mask.as_ref().map(|mask| match mask {
            Mask::Added(mask) => mask.dim(1),
            Mask::Causal => panic!("a mask by name"),
        })
    }

    #[test]
    fn layers_of_one_kind_have_one_view() {
        for (windows, keys_seen) in [([None, None], 9), ([Some(4), Some(4)], 6)] {
            let (Views::One(view), ..) = views(&windows, false, 6, 3) else { panic!("two views for {windows:?}") };
            assert_eq!(keys(&view), Some(keys_seen));
        }
    }

    #[test]
    fn what_is_equal_for_layers_with_windows_and_without_is_made_once() {
        let windows = [None, Some(4)];
        // All that these queries could see is in the window.
        let (_, masks, angles) = views(&windows, false, 1, 3);
        assert_eq!((masks, angles), (vec![None], vec![false]));
        let (_, masks, angles) = views(&windows, true, 1, 4);
        assert_eq!((masks, angles), (vec![None, Some(4)], vec![false, true]));
    }

    #[test]
    fn a_layer_has_the_view_of_its_kind_and_a_single_query_no_mask() {
        let (both, ..) = views(&[None, Some(4)], true, 6, 3);
        assert_eq!((keys(both.of(None)), keys(both.of(Some(4)))), (Some(9), Some(6)));
        for windows in [[None, None], [None, Some(4)], [Some(4), Some(4)]] {
            let (views, ..) = views(&windows, true, 6, 1);
            assert!(windows.iter().all(|window| views.of(*window).mask.is_none()));
        }
    }
}
