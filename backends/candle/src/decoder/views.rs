//! What layers share within a step.

use candle_core::{DType, Device, Result};
use llm_local_backend_common::decoder::Rotary;

use super::{attention::View, mask::mask, rotary::Angles};

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
    /// Those of `count` positions from `position` on, in a sequence that is long or not. `windows` has for each layer
    /// the keys that a query sees; where it is not all of them, they are equally many.
    pub(crate) fn new(
        rotary: &Rotary,
        windows: &[Option<usize>],
        position: usize,
        count: usize,
        long: bool,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let angles = |windowed| Angles::new(rotary.frequencies(windowed, long), position, count, dtype, device);
        let mask = |window| mask(position, count, window, dtype, device);
        let of = |window: Option<usize>| Ok(View { angles: angles(window.is_some())?, mask: mask(window)? });
        let window = windows.iter().copied().find(Option::is_some).flatten();
        if window.is_none() || !windows.contains(&None) {
            return of(window).map(Self::One);
        }
        let full = of(None)?;
        let windowed = View {
            angles: if rotary.local.is_some() { angles(true)? } else { full.angles.clone() },
            mask: match window {
                Some(window) if position + count > window => mask(Some(window))?,
                _ => full.mask.clone(),
            },
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
    use llm_local_core::model::Rope;

    use super::*;

    fn views(windows: &[Option<usize>], local: bool, position: usize, count: usize) -> Views {
        let rope = |theta| Rope::new(theta, 8).resolve("m", 64, &mut |_| unreachable!()).unwrap();
        let rotary = Rotary { global: rope(1e4), local: local.then(|| rope(100.0)) };
        Views::new(&rotary, windows, position, count, false, DType::F32, &Device::Cpu).unwrap()
    }

    #[test]
    fn layers_of_one_kind_have_one_view() {
        for (windows, keys) in [([None, None], 9), ([Some(4), Some(4)], 6)] {
            let Views::One(view) = views(&windows, false, 6, 3) else { panic!("two views for {windows:?}") };
            assert_eq!(view.mask.unwrap().dims(), [3, keys]);
        }
    }

    #[test]
    fn what_is_equal_for_layers_with_windows_and_without_is_made_once() {
        let windows = [None, Some(4)];
        let two = |local, position, count| match views(&windows, local, position, count) {
            Views::Two { full, windowed } => (full, windowed),
            Views::One(_) => panic!("one view for {windows:?}"),
        };
        let id = |view: &View| view.mask.as_ref().unwrap().id();
        // All that these queries could see is in the window.
        let (full, windowed) = two(false, 1, 3);
        assert_eq!((id(&full), full.angles.id()), (id(&windowed), windowed.angles.id()));
        let (full, windowed) = two(true, 1, 4);
        assert_eq!([&full, &windowed].map(|view| view.mask.as_ref().unwrap().dims().to_vec()), [[4, 5], [4, 5]]);
        assert!(id(&full) != id(&windowed) && full.angles.id() != windowed.angles.id());
    }

    #[test]
    fn a_layer_has_the_view_of_its_kind_and_a_single_query_no_mask() {
        let both = views(&[None, Some(4)], true, 6, 3);
        assert_eq!(both.of(None).mask.as_ref().unwrap().dims(), [3, 9]);
        assert_eq!(both.of(Some(4)).mask.as_ref().unwrap().dims(), [3, 6]);
        assert_ne!(both.of(None).angles.id(), both.of(Some(4)).angles.id());
        for windows in [[None, None], [None, Some(4)], [Some(4), Some(4)]] {
            let views = views(&windows, true, 6, 1);
            assert!(windows.iter().all(|window| views.of(*window).mask.is_none()));
        }
    }
}
