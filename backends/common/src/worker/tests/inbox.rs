//! The end of the commands.

use std::{sync::Barrier, thread};

use llm_local_core::TrimLevel;
use tokio::sync::{
    mpsc,
    oneshot::{self, error::TryRecvError},
};

use crate::worker::command::{Command, Inbox, Reply};

#[test]
fn a_command_that_is_sent_while_the_inbox_closes_is_answered_or_refused() {
    // A sender that is caught between taking its place in the queue and filling it is chance; without the draining,
    // each of twenty runs of this test met some.
    for _ in 0..80 {
        let (commands, receiver) = mpsc::unbounded_channel();
        let mut inbox = Inbox::new(receiver);
        let started = Barrier::new(2);
        let answers = thread::scope(|scope| {
            let sender = scope.spawn(|| {
                started.wait();
                let mut answers = Vec::new();
                loop {
                    let (reply, answer) = oneshot::channel();
                    if commands.send(Command::Trim(TrimLevel::Caches, Reply::new(reply))).is_err() {
                        return answers;
                    }
                    answers.push(answer);
                }
            });
            started.wait();
            // Some are taken, so that the sender is at work.
            for _ in 0..3 {
                while inbox.take().is_none() {
                    thread::yield_now();
                }
            }
            drop(inbox);
            sender.join().unwrap()
        });
        // The channel is there still, as it is while a caller waits with its handle.
        for mut answer in answers {
            assert_eq!(answer.try_recv().unwrap_err(), TryRecvError::Closed);
        }
        drop(commands);
    }
}
