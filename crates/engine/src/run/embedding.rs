//! The vector of one text.

use tokio::sync::oneshot;

use super::{error::GenerationError, event::Stats, observer::Observer, request::Pooling};

/// Pools hidden states as they come, and sends the vector.
pub(crate) struct Embedding {
    /// Sum of the states that are wanted; in f64, so that long texts lose nothing.
    pooled: Vec<f64>,
    /// States that are still to come, and those that there are in all.
    left: usize,
    total: usize,
    sender: Option<oneshot::Sender<Result<Vec<f32>, GenerationError>>>,
    pub(super) stats: Stats,
}

impl Embedding {
    /// The vector of a text of `tokens` tokens.
    pub(crate) fn new(
        tokens: usize,
        pooling: Pooling,
        sender: oneshot::Sender<Result<Vec<f32>, GenerationError>>,
    ) -> Self {
        let total = match pooling {
            Pooling::Mean => tokens,
            Pooling::Last => 1,
        };
        Self {
            pooled: Vec::new(),
            left: total,
            total,
            sender: Some(sender),
            stats: Stats {
                prompt_tokens: tokens,
                ..Stats::default()
            },
        }
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.sender.as_ref().is_some_and(oneshot::Sender::is_closed)
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.sender.is_none()
    }

    /// Position from which on states are wanted, of a text of `tokens` tokens.
    pub(crate) fn wanted_from(tokens: usize, pooling: Pooling) -> usize {
        match pooling {
            Pooling::Mean => 0,
            Pooling::Last => tokens.saturating_sub(1),
        }
    }

    /// Takes the state of the next position that is wanted, and ends with the last one.
    pub(crate) fn add(&mut self, state: &[f32], observer: &dyn Observer) {
        self.pooled.resize(state.len(), 0.0);
        for (sum, value) in self.pooled.iter_mut().zip(state) {
            *sum += f64::from(*value);
        }
        self.left = self.left.saturating_sub(1);
        if self.left > 0 {
            return;
        }
        let parts = self.total as f64;
        let vector: Vec<f32> = self.pooled.iter().map(|v| (v / parts) as f32).collect();
        if vector.iter().all(|value| value.is_finite()) {
            observer.finished(&self.stats, "stop");
            self.send(Ok(vector));
        } else {
            let why = "the model computed a state that is not a number";
            self.fail(GenerationError::Failed(why.to_owned()), observer);
        }
    }

    pub(crate) fn fail(&mut self, error: GenerationError, observer: &dyn Observer) {
        observer.finished(&self.stats, "error");
        self.send(Err(error));
    }

    fn send(&mut self, result: Result<Vec<f32>, GenerationError>) {
        if let Some(sender) = self.sender.take() {
            // Whoever asked may be gone.
            let _ = sender.send(result);
        }
    }
}
