use std::{
    fs,
    sync::mpsc::channel,
    thread,
    time::{Duration, Instant},
};

use super::*;
use crate::{bigram, optimiser::Moments, trainer::Cursor};

fn state(step: u64) -> State {
    let len = crate::parameters(&bigram::config(), &bigram::lora())
        .unwrap()
        .len;
    let numbers = |from: f32| {
        (0..len)
            .map(|i| from + i as f32 / 7.0)
            .collect::<Vec<f32>>()
    };
    State {
        values: numbers(step as f32),
        moments: Moments {
            first: numbers(0.5),
            second: numbers(0.25),
        },
        best_values: Some(numbers(9.0)),
        cursor: Cursor {
            recipe: "recipe".to_owned(),
            data: "digest".to_owned(),
            inputs: Some(crate::Inputs {
                model: "model".to_owned(),
                from: None,
                eval: Some("eval".to_owned()),
            }),
            learner: Some("cpu float32".to_owned()),
            epoch: 2,
            offset: 3,
            step,
            updates: step,
            skipped: 0,
            bad_in_a_row: 0,
            tokens: 100,
            micro_batch_tokens: 64,
            unjudged: false,
            best: Some(crate::Best {
                step: 1,
                loss: 0.1 + 0.2,
            }),
            without_gain: 0,
        },
    }
}

#[test]
fn what_was_written_is_read_back_and_few_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let store = bigram::checkpoints(folder.path(), 2);
    assert!(store.latest().unwrap().found.is_none());
    for step in [1, 2, 3, 10] {
        store.write(&state(step)).unwrap();
    }
    let latest = store.latest().unwrap();
    assert_eq!(latest.found.unwrap().1, state(10));
    assert!(latest.passed_over.is_empty());
    let steps: Vec<u64> = store.all().unwrap().iter().map(|w| w.step).collect();
    assert_eq!(steps, [10, 3]);
    // The same step once more, as after a resume.
    store.write(&state(10)).unwrap();
    assert_eq!(
        names(folder.path()).unwrap().len(),
        2,
        "nothing is left aside"
    );
}

#[test]
fn a_process_killed_at_any_write_leaves_the_checkpoint_before() {
    let folder = tempfile::tempdir().unwrap();
    let store = bigram::checkpoints(folder.path(), 3);
    let before = store.write(&state(1)).unwrap();
    let whole = store.write(&state(2)).unwrap();
    let files: Vec<String> = names(&whole.path).unwrap();
    assert_eq!(files.len(), 5);
    // Aside, with any number of its files: not renamed yet.
    for count in 0..=files.len() {
        let aside = folder.path().join(format!("{ASIDE}3"));
        fs::create_dir(&aside).unwrap();
        for file in &files[..count] {
            fs::copy(whole.path.join(file), aside.join(file)).unwrap();
        }
        let store = bigram::checkpoints(folder.path(), 3);
        assert!(!aside.exists(), "remains are deleted");
        assert_eq!(store.latest().unwrap().found.unwrap().0, whole);
    }
    // Renamed, but the disk lost the end of a file, or all of it, or changed a byte.
    for file in &files {
        let path = whole.path.join(file);
        let bytes = fs::read(&path).unwrap();
        let mut changed = bytes.clone();
        changed[bytes.len() / 2] ^= 1;
        for broken in [
            None,
            Some(&bytes[..bytes.len() / 2]),
            Some(&[]),
            Some(&changed),
        ] {
            match broken {
                None => fs::remove_file(&path).unwrap(),
                Some(some) => fs::write(&path, some).unwrap(),
            }
            let latest = bigram::checkpoints(folder.path(), 3).latest().unwrap();
            assert_eq!(latest.found.unwrap().0, before, "{file}");
            assert_eq!(latest.passed_over.len(), 1);
            assert_eq!(latest.passed_over[0].0, whole.path);
        }
        fs::write(&path, &bytes).unwrap();
    }
    assert_eq!(store.latest().unwrap().found.unwrap().0, whole);
    // A damaged one is replaced by the next of its step.
    fs::remove_file(whole.path.join("cursor.json")).unwrap();
    store.write(&state(2)).unwrap();
    assert_eq!(store.latest().unwrap().found.unwrap().1, state(2));
}

#[test]
fn an_adapter_that_is_not_finite_is_refused_and_leaves_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let store = bigram::checkpoints(folder.path(), 3);
    store.write(&state(1)).unwrap();
    let mut bad = state(2);
    bad.values[4] = f32::INFINITY;
    assert!(matches!(
        store.write(&bad),
        Err(CheckpointError::NotFinite { index: 4 })
    ));
    assert_eq!(names(folder.path()).unwrap().len(), 1);
}

#[test]
fn a_checkpoint_of_another_form_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    bigram::checkpoints(folder.path(), 3)
        .write(&state(1))
        .unwrap();
    let lora = crate::Lora {
        alpha: 7.0,
        ..bigram::lora()
    };
    let parameters = crate::parameters(&bigram::config(), &lora).unwrap();
    let base = BaseName::default();
    let other = Checkpoints::open(folder.path(), 3, bigram::config(), parameters, base).unwrap();
    assert!(matches!(
        other.latest(),
        Err(CheckpointError::OtherLayout { .. })
    ));
}

#[test]
fn errors_of_the_thread_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoints");
    let store = bigram::checkpoints(&path, 3);
    let writer = store.writer(&state(0)).unwrap();
    writer.write(&state(1)).unwrap();
    let written = writer.finish();
    let [Ok((Written { step: 1, path: at }, cost))] = written.as_slice() else {
        panic!("{written:?}");
    };
    let files = fs::read_dir(at).unwrap();
    let sizes = files.map(|file| file.unwrap().metadata().unwrap().len());
    assert_eq!(cost.bytes, sizes.sum::<u64>());
    assert!(cost.took >= cost.stood_still && cost.stood_still >= cost.waited);
    fs::remove_dir_all(&path).unwrap();
    let writer = store.writer(&state(0)).unwrap();
    writer.write(&state(2)).unwrap();
    let written = writer.finish();
    let [Err((2, CheckpointError::Io { .. }))] = written.as_slice() else {
        panic!("{written:?}");
    };
}

#[test]
fn training_waits_for_a_copy_and_only_for_a_third_until_the_first_is_written() {
    let (say, begun) = channel();
    let (go, may) = channel::<()>();
    let writer = CheckpointWriter::writing(&state(0), move |state| {
        say.send(state.cursor.step).unwrap();
        may.recv().unwrap();
        Ok(Written {
            step: state.cursor.step,
            path: PathBuf::from("/nowhere"),
        })
    });
    let writer = writer.unwrap();
    writer.write(&state(1)).unwrap();
    assert_eq!(begun.recv(), Ok(1));
    writer.write(&state(2)).unwrap();
    assert!(writer.written().is_empty(), "none is on disk yet");

    let least = Duration::from_millis(20);
    let began = Instant::now();
    let disk = thread::spawn(move || {
        thread::sleep(least);
        for _ in 0..3 {
            go.send(()).unwrap();
        }
    });
    writer.write(&state(3)).unwrap();
    assert!(began.elapsed() >= least);
    disk.join().unwrap();
    let saved: Vec<_> = writer.finish().into_iter().map(Result::unwrap).collect();
    let steps: Vec<u64> = saved.iter().map(|(written, _)| written.step).collect();
    assert_eq!(steps, [1, 2, 3]);
    let waited = |index: usize| saved[index].1.waited;
    assert!(waited(2) > waited(0) && waited(2) > waited(1), "{saved:?}");
}

#[test]
fn a_checkpoint_is_of_its_own_step_whatever_the_memory_of_it_held_before() {
    let folder = tempfile::tempdir().unwrap();
    let store = bigram::checkpoints(folder.path(), 10);
    let without_best = State {
        best_values: None,
        ..state(0)
    };
    let writer = store.writer(&without_best).unwrap();
    let mut written = Vec::new();
    for step in 1..=6 {
        let of_step = State {
            best_values: state(step).best_values.filter(|_| step % 2 == 0),
            ..state(step)
        };
        writer.write(&of_step).unwrap();
        written.extend(writer.written());
    }
    written.extend(writer.finish());
    assert_eq!(written.len(), 6);
    for step in (1..=6).rev() {
        let (found, read) = store.latest().unwrap().found.unwrap();
        assert_eq!((found.step, read.cursor.step), (step, step));
        assert_eq!(read.values, state(step).values);
        assert_eq!(read.moments, state(step).moments);
        assert_eq!(read.best_values.is_some(), step % 2 == 0);
        fs::remove_dir_all(found.path).unwrap();
    }
}

#[test]
fn a_checkpoint_is_carried_elsewhere_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let (here, there) = (folder.path().join("here"), folder.path().join("there"));
    assert_eq!(newest(&here).unwrap(), None);
    let store = bigram::checkpoints(&here, 3);
    store.write(&state(2)).unwrap();
    let last = store.write(&state(4)).unwrap();
    assert_eq!(newest(&here).unwrap(), Some(last.clone()));
    fs::write(last.path.join("cursor.json"), "{}").unwrap();
    assert_eq!(newest(&here).unwrap().map(|written| written.step), Some(2));
    assert!(matches!(
        adopt(&last.path, &there),
        Err(CheckpointError::Damaged { .. })
    ));
    assert!(last.path.exists() && !there.exists());

    let carried = newest(&here).unwrap().unwrap();
    let carried = adopt(&carried.path, &there).unwrap();
    let arrived = bigram::checkpoints(&there, 3).latest().unwrap();
    assert_eq!(arrived.found, Some((carried, state(2))));
    // One that is there gives way.
    let again = store.write(&state(2)).unwrap();
    adopt(&again.path, &there).unwrap();
    assert_eq!(names(&there).unwrap(), ["step-00000002"]);
}
