//! Log-probabilities, ranking and embeddings.

use super::*;

/// The pieces of an answer.
fn pieces(stream: TextStream) -> (Vec<TextPiece>, Stats) {
    let mut stream = stream;
    let pieces = block_on(async {
        let mut pieces = Vec::new();
        while let Some(piece) = stream.next().await {
            pieces.push(piece.unwrap());
        }
        pieces
    });
    (pieces, *stream.stats())
}

/// The log-probability of `token` after `before`.
fn logprob(before: &[u32], token: u32) -> f32 {
    let row = fake::logits(before, false);
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = row.iter().map(|logit| (logit - max).exp()).sum();
    row[token as usize] - max - sum.ln()
}

#[track_caller]
fn check_prompt(told: &[Option<TokenLogprobs>], prompt: &[u32]) {
    assert_eq!(told.len(), prompt.len());
    assert_eq!(told[0], None);
    for (at, entry) in told.iter().enumerate().skip(1) {
        let entry = entry.as_ref().unwrap();
        assert_eq!((entry.token, entry.top.len()), (prompt[at], 2));
        assert!((entry.logprob - logprob(&prompt[..at], prompt[at])).abs() < 1e-4);
        assert_eq!(entry.top[0].0, fake::greedy(&prompt[..at], 1)[0]);
    }
}

#[test]
fn the_prompt_is_scored_in_pieces_and_whatever_is_cached() {
    let config = EngineConfig {
        max_batch: 4,
        max_step_tokens: 24,
        ..Default::default()
    };
    let engine = start(64, FakeOptions::default(), config);
    let prompt: Vec<u32> = (0..70).map(|i| 40 + i * 7 % 60).collect();
    collect(engine.submit(greedy(&prompt, 5)).unwrap());
    let request = Request {
        prompt_logprobs: Some(2),
        ..greedy(&prompt, 5)
    };
    let (pieces, stats) = pieces(engine.submit(request).unwrap());
    check_prompt(&pieces[0].prompt_logprobs, &prompt);
    assert!(
        pieces[1..]
            .iter()
            .all(|piece| piece.prompt_logprobs.is_empty())
    );
    let tokens: Vec<u32> = pieces.into_iter().flat_map(|piece| piece.tokens).collect();
    assert_eq!(tokens, fake::greedy(&prompt, 5));
    assert_eq!((stats.cached_tokens, stats.completion_tokens), (0, 5));
}

#[test]
fn a_prompt_can_be_scored_without_an_answer_up_to_the_longest() {
    let engine = plain(4);
    for len in [1, 40, 64] {
        let prompt: Vec<u32> = (0..len).map(|i| 40 + i % 50).collect();
        let request = Request {
            prompt_logprobs: Some(2),
            ..greedy(&prompt, 0)
        };
        let (pieces, stats) = pieces(engine.submit(request).unwrap());
        assert_eq!(pieces.len(), 1);
        check_prompt(&pieces[0].prompt_logprobs, &prompt);
        assert!(pieces[0].tokens.is_empty() && pieces[0].text.is_empty());
        assert_eq!(stats.finish_reason, Some(FinishReason::Length));
        assert_eq!(stats.completion_tokens, 0);
    }
    let without = engine.submit(greedy(&[1], 0)).unwrap_err();
    assert_eq!(without, InvalidRequest::NoAnswer.into());
}

#[test]
fn scoring_goes_on_where_it_was_when_blocks_were_lost() {
    // Two prompts of 60 tokens and their answers do not fit together.
    let config = EngineConfig {
        max_batch: 4,
        max_step_tokens: 20,
        ..Default::default()
    };
    let engine = start(9, FakeOptions::default(), config);
    let prompts: Vec<Vec<u32>> = (0..4)
        .map(|which| (0..60).map(|i| 40 + (i * (which + 3)) % 60).collect())
        .collect();
    let submit = |prompt: &Vec<u32>| {
        let request = Request {
            prompt_logprobs: Some(2),
            ..greedy(prompt, 40)
        };
        engine.submit(request).unwrap()
    };
    let streams: Vec<_> = prompts.iter().map(submit).collect();
    for (prompt, stream) in prompts.iter().zip(streams) {
        let (pieces, _) = pieces(stream);
        check_prompt(&pieces[0].prompt_logprobs, prompt);
    }
}

#[test]
fn the_sum_of_logprobs_is_told_when_asked_for() {
    let engine = plain(64);
    let tokens = fake::greedy(&[5], 6);
    let mut sum = 0.0;
    let mut before = vec![5];
    for &token in &tokens {
        sum += f64::from(logprob(&before, token));
        before.push(token);
    }
    let ranked = Request {
        rank: true,
        ..greedy(&[5], 6)
    };
    let (pieces, stats) = pieces(engine.submit(ranked).unwrap());
    assert!((stats.cumulative_logprob.unwrap() - sum).abs() < 1e-3);
    assert!(pieces.iter().all(|piece| piece.logprobs.is_empty()));
    let logprobs = Request {
        logprobs: Some(0),
        ..greedy(&[5], 6)
    };
    let told = collect(engine.submit(logprobs).unwrap())
        .3
        .cumulative_logprob;
    assert!((told.unwrap() - sum).abs() < 1e-3);
    let plain = collect(engine.submit(greedy(&[5], 6)).unwrap()).3;
    assert_eq!(plain.cumulative_logprob, None);
}

#[test]
fn an_embedding_is_the_pooled_states_in_pieces_and_beside_others() {
    let config = EngineConfig {
        max_batch: 4,
        max_step_tokens: 24,
        ..Default::default()
    };
    let engine = start(64, FakeOptions::default(), config);
    let text: Vec<u32> = (0..70).map(|i| 40 + i * 7 % 60).collect();
    // What is cached makes no difference.
    let beside = engine.submit(greedy(&text, 50)).unwrap();
    let embed = |tokens: Vec<u32>, pooling| {
        block_on(engine.embed(vec![tokens], pooling, Vec::new()))
            .map(|mut vectors| vectors.remove(0))
    };
    let last = embed(text.clone(), Pooling::Last).unwrap();
    assert_eq!(last, fake::hidden(&text));
    let mean = embed(text.clone(), Pooling::Mean).unwrap();
    for (i, value) in mean.iter().enumerate() {
        let sum: f32 = (1..=70).map(|len| fake::hidden(&text[..len])[i]).sum();
        assert!((value - sum / 70.0).abs() < 1e-3);
    }
    assert_eq!(collect(beside).1, fake::greedy(&text, 50));
    let whole: Vec<u32> = vec![40; 1024];
    assert!(embed(whole, Pooling::Mean).is_ok());
    comes_to_rest(&engine);
}

#[test]
fn more_texts_than_can_wait_are_embedded_in_order() {
    let config = EngineConfig {
        max_queue: 8,
        ..Default::default()
    };
    let engine = start(256, FakeOptions::default(), config);
    let texts: Vec<Vec<u32>> = (0..40).map(|i| vec![50, 40 + i]).collect();
    let vectors = block_on(engine.embed(texts.clone(), Pooling::Last, Vec::new())).unwrap();
    let expected: Vec<_> = texts.iter().map(|t| fake::hidden(t).to_vec()).collect();
    assert_eq!(vectors, expected);
    comes_to_rest(&engine);
}

#[test]
fn an_embedding_that_cannot_be_is_refused_and_one_that_fails_fails_alone() {
    let options = FakeOptions {
        failing_token: Some(13),
        ..Default::default()
    };
    let engine = start(4, options, EngineConfig::default());
    let embed = |tokens: Vec<u32>| block_on(engine.embed(vec![tokens], Pooling::Mean, Vec::new()));
    for tokens in [vec![], vec![9999], vec![1; 65]] {
        let error = embed(tokens).unwrap_err();
        assert!(matches!(
            error,
            GenerationError::Refused(SubmitError::Invalid(_))
        ));
    }
    assert!(matches!(
        embed(vec![1, 13]),
        Err(GenerationError::Failed(_))
    ));
    assert!(embed(vec![1; 64]).is_ok());
    // A future that is not awaited to its end computes nothing further.
    drop(engine.embed(vec![vec![1; 60]], Pooling::Mean, Vec::new()));
    comes_to_rest(&engine);
}
