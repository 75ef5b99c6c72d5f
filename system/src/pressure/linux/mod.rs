//! What Linux tells of pressure.

use std::sync::Arc;

use super::PressureSource;

/// Every source of this system, best first.
pub(super) fn sources() -> Vec<Arc<dyn PressureSource>> {
    Vec::new()
}
