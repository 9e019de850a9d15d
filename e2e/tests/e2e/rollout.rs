//! New commits under load.

use anyhow::Result;
use hyprstream_e2e::{Chat, Load, wait_until};

use crate::{PATIENCE, Tiny};

#[test]
fn s02_a_push_and_a_revert_roll_over_without_a_failed_or_truncated_request() -> Result<()> {
    let tiny = Tiny::serve("rollout")?;
    let question = Chat::new(&tiny.cluster.ingress, &tiny.model.id(), "go on", 96);
    let before = question.ask()?;
    let load = Load::start(6, &question);
    wait_until(PATIENCE, || Ok((load.report().total() >= 30).then_some(())))?;
    let second = tiny.push_seed(2)?;
    tiny.model.wait_ready_on(&second, PATIENCE)?;
    tiny.repository.git(&["revert", "--no-edit", "HEAD"])?;
    tiny.repository.push()?;
    let third = tiny.repository.git(&["rev-parse", "HEAD"])?;
    tiny.model.wait_ready_on(&third, PATIENCE)?;
    wait_until(PATIENCE, || {
        let report = load.report();
        let enough = report.total() >= 200 && report.answers.contains_key(&third);
        Ok((enough || !report.failures.is_empty()).then_some(()))
    })?;
    let report = load.stop()?;
    println!("answers by commit: {:?}", report.answers);
    assert_eq!(report.failures, Vec::<String>::new());
    assert!(report.total() >= 200);
    for commit in [&tiny.commit, &second, &third] {
        assert!(
            report.answers.contains_key(commit),
            "{commit} answered under load"
        );
    }
    let after = question.ask()?;
    assert_eq!(after.commit, third);
    assert_eq!(
        after.text, before.text,
        "the revert brings the old content back"
    );
    Ok(())
}
