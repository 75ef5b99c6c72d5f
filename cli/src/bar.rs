//! The progress of downloads, as a bar on standard error. Quiet where that is no terminal.

use std::sync::{Arc, Mutex, PoisonError};

use indicatif::{DecimalBytes, HumanDuration, ProgressBar, ProgressStyle};
use llm_local::{DownloadProgress, ProgressEvent, ProgressHandler};

/// What [`llm_local::Engine::load_with_progress`] and the like are given.
pub(crate) fn progress() -> Arc<dyn ProgressHandler> {
    Arc::new(Bar::default())
}

/// There once there is something to fetch.
#[derive(Default)]
struct Bar(Mutex<Option<ProgressBar>>);

impl ProgressHandler for Bar {
    fn on_progress(&self, event: &ProgressEvent) {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            ProgressEvent::Download(progress) if progress.fraction < 1.0 => {
                let bar = slot.get_or_insert_with(|| ProgressBar::new(0).with_style(style()));
                bar.set_length(progress.total_bytes);
                bar.set_position(progress.completed_bytes);
                bar.set_message(message(progress));
            }
            ProgressEvent::Download(_) => {
                if let Some(bar) = slot.take() {
                    bar.finish_and_clear();
                }
            }
            ProgressEvent::Waiting { what, reason, .. } => {
                let bar = slot.get_or_insert_with(|| ProgressBar::new(0).with_style(style()));
                bar.set_message(format!("{what} waits: {reason}"));
            }
            _ => {}
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // What came stays to be seen behind an error or an interrupt.
            bar.abandon();
        }
    }
}

const TEMPLATE: &str = "{bar:30} {decimal_bytes}/{decimal_total_bytes} {wide_msg}";

fn style() -> ProgressStyle {
    ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn message(progress: &DownloadProgress) -> String {
    let speed = progress.bytes_per_second.map(|speed| format!("{}/s", DecimalBytes(speed as u64)));
    let remaining = progress.remaining().map(|time| format!("{} left", HumanDuration(time)));
    let parts: Vec<_> = speed.into_iter().chain(remaining).chain(progress.current_file.clone()).collect();
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_what_is_known() {
        let progress = DownloadProgress::new(0, 10_000_000).with_current_file("a.gguf");
        assert_eq!(message(&progress), "a.gguf");
        assert_eq!(message(&progress.with_speed(1e6)), "1.00 MB/s, 10 seconds left, a.gguf");
    }

    #[test]
    fn the_template_is_sound() {
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
    }
}
