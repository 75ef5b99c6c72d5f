//! What an application decides about memory.

use std::{collections::BTreeMap, time::Duration};

use llm_local_core::{Error, KeepAlive, Result};

use super::ContextTiers;

/// How much memory models may take, how long they stay, and what happens when memory runs short. As it comes, it keeps the
/// application alive before it keeps models loaded.
///
/// ```
/// use std::time::Duration;
/// use llm_local::{Engine, memory::{Budget, MemoryPolicy}, core::KeepAlive};
/// let policy = MemoryPolicy::new()
///     .with_budget(Budget::Bytes(4_000_000_000))
///     .with_max_models(2)
///     .with_keep_alive(KeepAlive::For(Duration::from_secs(300)));
/// let engine = Engine::builder().memory(policy).build()?;
/// # Ok::<_, llm_local::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct MemoryPolicy {
    /// What all models together may take; 0.8 of what applies by default.
    pub budget: Budget,
    /// What those on one device may take, by its id, in place of `budget`. Of a device that takes the machine's memory, both hold.
    pub device_budgets: BTreeMap<String, Budget>,
    /// The share of what may be used that a load leaves free, whoever takes the rest; 0.05 by default, which is where
    /// [`Polling`](super::pressure::Polling) begins to call it critical.
    pub headroom: f64,
    /// How many models may be loaded at once; as many as fit by default.
    pub max_models: Option<usize>,
    /// How long a model stays while nobody uses it, whose spec says [`KeepAlive::Auto`]; until its memory is needed by default.
    /// It is looked after while the engine is [monitoring](crate::Engine::start_monitoring).
    pub keep_alive: KeepAlive,
    /// How long contexts are that a spec leaves to the library, by the memory of the device, and at most.
    pub context_tiers: ContextTiers,
    /// What a load does that would fit if models in use were not there. Where it lacks nothing but what another load may not have
    /// taken yet of its promise, it waits for that one in any case: a load ends by itself, as long as it is polled.
    pub when_in_use: WhenShort,
    /// What a load does that begins while memory is critically short.
    pub when_critical: WhenShort,
    /// Whether generations are stopped when memory is critically short, with
    /// [`FinishReason::MemoryPressure`](llm_local_core::FinishReason::MemoryPressure), and their models go too. Otherwise they
    /// run to their end.
    pub stop_generations: bool,
    /// A warning lets idle models go until this share of what may be used is free, and one at least; 0.15 by default.
    pub enough: f64,
    /// How long nothing is done again about pressure that goes on; a second by default.
    pub settle: Duration,
    /// How long nobody must have reported a level before it is over; 10 seconds by default.
    pub calm: Duration,
}

/// How much models may take.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Budget {
    /// A share of what applies: physical memory, or what a control group or the system leaves the process, or a device's own
    /// memory. Above 0, and at most 1.
    Share(f64),
    /// So many bytes, or what applies if that is less.
    Bytes(u64),
}

/// What a load does for which there is no memory now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhenShort {
    /// It waits until there is. Whoever waits must not be the one who keeps the memory in use, by a generation that is not
    /// polled.
    Wait,
    /// It fails with [`Error::InsufficientMemory`].
    Fail,
}

impl Budget {
    /// The bytes of it where `usable` bytes apply.
    pub fn of(self, usable: u64) -> u64 {
        match self {
            Self::Share(share) => (usable as f64 * share) as u64,
            Self::Bytes(bytes) => bytes.min(usable),
        }
    }
}

impl Default for MemoryPolicy {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryPolicy {
    /// The policy as it comes.
    pub fn new() -> Self {
        Self {
            budget: Budget::Share(0.8),
            device_budgets: BTreeMap::new(),
            headroom: 0.05,
            max_models: None,
            keep_alive: KeepAlive::Auto,
            context_tiers: ContextTiers::default(),
            when_in_use: WhenShort::Fail,
            when_critical: WhenShort::Wait,
            stop_generations: false,
            enough: 0.15,
            settle: Duration::from_secs(1),
            calm: Duration::from_secs(10),
        }
    }

    /// Sets what all models together may take.
    pub fn with_budget(mut self, budget: Budget) -> Self {
        self.budget = budget;
        self
    }

    /// Sets what the models on the device with this id may take.
    pub fn with_device_budget(mut self, device: impl Into<String>, budget: Budget) -> Self {
        self.device_budgets.insert(device.into(), budget);
        self
    }

    /// Sets the share that a load leaves free.
    pub fn with_headroom(mut self, share: f64) -> Self {
        self.headroom = share;
        self
    }

    /// Sets how many models may be loaded at once.
    pub fn with_max_models(mut self, models: usize) -> Self {
        self.max_models = Some(models);
        self
    }

    /// Sets how long a model stays while nobody uses it.
    pub fn with_keep_alive(mut self, keep_alive: KeepAlive) -> Self {
        self.keep_alive = keep_alive;
        self
    }

    /// Sets the table of context lengths.
    pub fn with_context_tiers(mut self, tiers: ContextTiers) -> Self {
        self.context_tiers = tiers;
        self
    }

    /// Sets what a load does that would fit if models in use were not there.
    pub fn when_in_use(mut self, when: WhenShort) -> Self {
        self.when_in_use = when;
        self
    }

    /// Sets what a load does that begins while memory is critically short.
    pub fn when_critical(mut self, when: WhenShort) -> Self {
        self.when_critical = when;
        self
    }

    /// Sets whether generations are stopped when memory is critically short.
    pub fn stopping_generations(mut self, stop: bool) -> Self {
        self.stop_generations = stop;
        self
    }

    /// Sets the share that is to be free after a warning.
    pub fn with_enough(mut self, share: f64) -> Self {
        self.enough = share;
        self
    }

    /// Sets for how long nothing is done again about pressure that goes on.
    pub fn with_settle(mut self, time: Duration) -> Self {
        self.settle = time;
        self
    }

    /// Sets for how long nobody must have reported a level before it is over.
    pub fn with_calm(mut self, time: Duration) -> Self {
        self.calm = time;
        self
    }

    /// # Errors
    /// [`Error::InvalidSpec`] that names the field.
    pub(crate) fn validate(&self) -> Result<()> {
        let budgets = self.device_budgets.iter().map(|(id, budget)| (format!("memory.device_budgets.{id}"), *budget));
        for (field, budget) in [("memory.budget".to_owned(), self.budget)].into_iter().chain(budgets) {
            if let Budget::Share(share) = budget
                && !(share > 0.0 && share <= 1.0)
            {
                return Err(Error::invalid_spec(
                    field,
                    format!("it is {share}; expected a share above 0, and at most 1"),
                ));
            }
        }
        for (field, share) in [("memory.headroom", self.headroom), ("memory.enough", self.enough)] {
            if !(0.0..1.0).contains(&share) {
                return Err(Error::invalid_spec(field, format!("it is {share}; expected a share from 0 to below 1")));
            }
        }
        if self.max_models == Some(0) {
            return Err(Error::invalid_spec("memory.max_models", "it is 0; expected at least 1, or none for no bound"));
        }
        Ok(())
    }

    /// How long a model stays whose spec says `of_spec`; `None` for as long as nobody needs its memory.
    pub(crate) fn keeps(&self, of_spec: KeepAlive) -> Option<Duration> {
        let of = |keep_alive| match keep_alive {
            KeepAlive::For(time) => Some(time),
            _ => None,
        };
        if of_spec == KeepAlive::Auto { of(self.keep_alive) } else { of(of_spec) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_a_share_or_bytes_and_never_more_than_there_is() {
        assert_eq!(Budget::Share(0.8).of(1000), 800);
        assert_eq!(Budget::Bytes(300).of(1000), 300);
        assert_eq!(Budget::Bytes(3000).of(1000), 1000);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_the_field() {
        let new = MemoryPolicy::new;
        new().validate().unwrap();
        let wrong = [
            (new().with_budget(Budget::Share(0.0)), "memory.budget"),
            (new().with_budget(Budget::Share(1.5)), "memory.budget"),
            (new().with_device_budget("cuda:0", Budget::Share(f64::NAN)), "memory.device_budgets.cuda:0"),
            (new().with_headroom(1.0), "memory.headroom"),
            (new().with_enough(-0.1), "memory.enough"),
            (new().with_max_models(0), "memory.max_models"),
        ];
        for (policy, field) in wrong {
            let error = policy.validate().unwrap_err().to_string();
            assert!(error.contains(&format!("invalid {field}")), "{error}");
        }
    }

    #[test]
    fn the_spec_says_how_long_a_model_stays_and_the_policy_where_it_does_not() {
        let seconds = Duration::from_secs;
        let policy = MemoryPolicy::new().with_keep_alive(KeepAlive::For(seconds(5)));
        assert_eq!(policy.keeps(KeepAlive::Auto), Some(seconds(5)));
        assert_eq!(policy.keeps(KeepAlive::For(seconds(7))), Some(seconds(7)));
        assert_eq!(policy.keeps(KeepAlive::Forever), None);
        assert_eq!(MemoryPolicy::new().keeps(KeepAlive::Auto), None);
    }
}
