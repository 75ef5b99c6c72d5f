//! Where what is merged goes: into memory of its own, or into the caller's.

use llm_local_core::TensorData;
use pulp::bytemuck;

use super::{
    kernel::{self, Touched},
    output::Output,
};

/// Takes what a tensor becomes.
pub(super) trait Destination {
    /// What is given when it is complete.
    type Given;

    /// Computes what `touched` becomes by `output`. The error continues a sentence that starts with the tensor's name.
    fn take<O: Output>(self, touched: &Touched<'_>, output: &O) -> Result<Self::Given, String>;
}

/// New memory.
pub(super) struct New;

impl Destination for New {
    type Given = TensorData<'static>;

    fn take<O: Output>(self, touched: &Touched<'_>, output: &O) -> Result<TensorData<'static>, String> {
        let mut out = vec![O::Item::default(); kernel::items(touched, output)];
        kernel::merge(touched, output, &mut out)?;
        Ok(output.data(out))
    }
}

/// Memory of exactly as many bytes, which may be unaligned. After an error it holds anything.
pub(super) struct Within<'a>(pub(super) &'a mut [u8]);

impl Destination for Within<'_> {
    type Given = ();

    fn take<O: Output>(self, touched: &Touched<'_>, output: &O) -> Result<(), String> {
        match bytemuck::try_cast_slice_mut(self.0) {
            Ok(out) if cfg!(target_endian = "little") => kernel::merge(touched, output, out),
            _ => {
                New.take(touched, output)?.copy_to(self.0);
                Ok(())
            }
        }
    }
}
