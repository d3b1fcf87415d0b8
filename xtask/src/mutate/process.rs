//! One test in a process of its own, ended as soon as the outcome is known.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Passed,
    Failed,
    TimedOut,
    Crashed,
}

/// A program of tests.
#[derive(Clone, Debug)]
pub struct Program {
    pub name: String,
    pub path: PathBuf,
    /// The folder of its crate.
    pub dir: PathBuf,
}

impl Program {
    /// Runs one test with these variables, at most so long.
    pub fn run(
        &self,
        test: &str,
        env: &[(String, String)],
        limit: Duration,
    ) -> Result<(Ending, Duration)> {
        let start = Instant::now();
        let mut child = Command::new(&self.path)
            // As cargo does with tests.
            .current_dir(&self.dir)
            .env("CARGO_MANIFEST_DIR", &self.dir)
            .args(["--exact", test, "--test-threads", "1"])
            .envs(env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("starting {}", self.path.display()))?;
        let output = child.stdout.take().context("the output of a test")?;
        let (send, receive) = channel();
        let reader = std::thread::spawn(move || {
            // Not `lines`: a broken kernel may print anything.
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                if send.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    break;
                }
            }
        });
        let mut ending = None;
        while ending.is_none() {
            match receive.recv_timeout(limit.saturating_sub(start.elapsed())) {
                Ok(line) => ending = judge(&line),
                Err(RecvTimeoutError::Timeout) => ending = Some(Ending::TimedOut),
                Err(RecvTimeoutError::Disconnected) => ending = Some(Ending::Crashed),
            }
        }
        // The outcome is known; what a failing test prints behind it is not needed.
        let _ = child.kill();
        let _ = child.wait();
        drop(receive);
        let _ = reader.join();
        Ok((ending.unwrap_or(Ending::Crashed), start.elapsed()))
    }
}

/// What a line of the test harness says about the only test.
fn judge(line: &str) -> Option<Ending> {
    let of_test = line.ends_with("FAILED") || line.starts_with("test result: FAILED");
    if of_test {
        return Some(Ending::Failed);
    }
    line.starts_with("test result: ok. 1 passed").then_some(Ending::Passed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHILD: &str = "XTASK_MUTATE_CHILD";

    /// Ends as the variable says, in the processes that the test below starts.
    #[test]
    fn child() {
        match std::env::var(CHILD).as_deref() {
            Ok("fail") => panic!("as asked"),
            Ok("exit") => std::process::exit(3),
            Ok("sleep") => std::thread::sleep(Duration::from_secs(60)),
            _ => {}
        }
    }

    #[test]
    fn endings() {
        let path = std::env::current_exe().unwrap();
        let own = Program { name: "xtask".into(), path, dir: ".".into() };
        let name = "mutate::process::tests::child";
        for (how, limit, want) in [
            ("pass", 50_000, Ending::Passed),
            ("fail", 50_000, Ending::Failed),
            ("exit", 50_000, Ending::Crashed),
            ("sleep", 300, Ending::TimedOut),
        ] {
            let env = [(CHILD.to_string(), how.to_string())];
            let (ending, time) = own.run(name, &env, Duration::from_millis(limit)).unwrap();
            assert_eq!(ending, want, "{how}");
            assert!(time < Duration::from_secs(40), "{how}: {time:?}");
        }
        // A name that no test has must not count as passed.
        assert_eq!(own.run("none", &[], Duration::from_secs(50)).unwrap().0, Ending::Crashed);
    }
}
