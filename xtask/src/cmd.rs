//! Child processes that are printed before they run.

use std::fmt;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A program with its arguments and the variables it gets on top of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cmd {
    program: String,
    args: Vec<String>,
    env: Vec<(String, String)>,
    /// Folder below the one given to `run`.
    within: String,
}

impl Cmd {
    /// From a command line without quotes: the words are separated by spaces.
    pub fn new(line: &str) -> Self {
        let mut words = line.split_whitespace().map(String::from);
        let program = words.next().unwrap_or_default();
        Self { program, args: words.collect(), env: Vec::new(), within: String::new() }
    }

    /// From the path of a program, which may hold spaces.
    pub fn program(path: &str) -> Self {
        let mut cmd = Self::new("");
        cmd.program = path.into();
        cmd
    }

    /// Runs in this crate's folder, as cargo does with tests.
    pub fn within(mut self, dir: &str) -> Self {
        self.within = dir.into();
        self
    }

    /// Appends one argument, which may hold spaces.
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Appends several arguments.
    pub fn args(mut self, args: impl IntoIterator<Item = String>) -> Self {
        self.args.extend(args);
        self
    }

    /// Sets a variable for this child only.
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Whether this is the program.
    pub fn is(&self, program: &str) -> bool {
        self.program == program
    }

    /// The same command, started by another program: `launcher words.. program args..`.
    pub fn through(mut self, launcher: &str, words: impl IntoIterator<Item = String>) -> Self {
        let program = std::mem::replace(&mut self.program, launcher.into());
        let own = std::mem::take(&mut self.args);
        self.args = words.into_iter().chain([program]).chain(own).collect();
        self
    }

    /// The value of a variable set with [`Cmd::env`].
    pub fn value(&self, name: &str) -> Option<&str> {
        let of_name = |(key, _): &&(String, String)| key == name;
        self.env.iter().find(of_name).map(|(_, value)| value.as_str())
    }

    /// Prints the command and runs it in `dir`, with nothing to read from standard input.
    pub fn run(&self, dir: &Path) -> Result<()> {
        println!("$ {self}");
        let status = self.process(dir).status().with_context(|| self.not_started())?;
        if !status.success() {
            bail!("`{self}` failed ({status})");
        }
        Ok(())
    }

    /// Prints the command, runs it, and prints what it wrote, in one piece, once it has ended: for commands that run
    /// side by side.
    pub fn run_aside(&self, dir: &Path) -> Result<()> {
        println!("$ {self}");
        let start = Instant::now();
        let (mut reader, writer) = io::pipe()?;
        let mut process = self.process(dir);
        process.stdout(writer.try_clone()?).stderr(writer);
        let mut child = process.spawn().with_context(|| self.not_started())?;
        // It holds the ends of the pipe that are written to; with them, reading would never end.
        drop(process);
        let mut output = Vec::new();
        // What came before an error is all there is.
        let _ = reader.read_to_end(&mut output);
        let status = child.wait()?;
        let (output, seconds) = (String::from_utf8_lossy(&output), start.elapsed().as_secs_f64());
        println!("{output}({seconds:.1} s: {self})");
        match status.success() {
            true => Ok(()),
            false => bail!("`{self}` failed ({status})"),
        }
    }

    /// Runs the command silently and returns what it wrote to standard output.
    pub fn read(&self, dir: &Path) -> Result<String> {
        self.output(self.process(dir).stderr(Stdio::piped()))
    }

    /// Like [`Cmd::read`], but standard error is shown as it comes.
    pub fn read_aloud(&self, dir: &Path) -> Result<String> {
        self.output(self.process(dir).stderr(Stdio::inherit()))
    }

    /// Like [`Cmd::read`], but ends a program that takes longer than `limit`, which is an error.
    pub fn read_within(&self, dir: &Path, limit: Duration) -> Result<String> {
        let start = Instant::now();
        let mut process = self.process(dir);
        let spawned = process.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = spawned.with_context(|| self.not_started())?;
        // Both pipes are emptied, or the program waits for room in one that is full.
        let outputs = (child.stdout.take().map(all), child.stderr.take().map(all));
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if start.elapsed() > limit {
                child.kill()?;
                child.wait()?;
                bail!("`{self}` took more than {} s", limit.as_secs());
            }
            thread::sleep(Duration::from_millis(20));
        };
        let bytes = |output: Option<JoinHandle<Vec<u8>>>| {
            output.and_then(|output| output.join().ok()).unwrap_or_default()
        };
        self.checked(Output { status, stdout: bytes(outputs.0), stderr: bytes(outputs.1) })
    }

    fn output(&self, process: &mut Command) -> Result<String> {
        self.checked(process.output().with_context(|| self.not_started())?)
    }

    fn not_started(&self) -> String {
        format!("`{}` could not be started", self.program)
    }

    fn checked(&self, output: Output) -> Result<String> {
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            bail!("`{self}` failed ({})\n{stderr}", output.status);
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn process(&self, dir: &Path) -> Command {
        // Under `cargo xtask`, CARGO names the very cargo that started us.
        let program = match self.program.as_str() {
            "cargo" => std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()),
            "rustc" => std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into()),
            other => other.into(),
        };
        let mut process = Command::new(program);
        process
            .args(&self.args)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .current_dir(dir.join(&self.within))
            .stdin(Stdio::null());
        if !self.within.is_empty() {
            // Cargo sets it for tests, and ours would be that of xtask.
            process.env("CARGO_MANIFEST_DIR", dir.join(&self.within));
        }
        process
    }
}

impl fmt::Display for Cmd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.within.is_empty() {
            write!(f, "cd {} && ", quote(&self.within))?;
        }
        for (name, value) in &self.env {
            write!(f, "{name}={} ", quote(value))?;
        }
        write!(f, "{}", quote(&self.program))?;
        for arg in &self.args {
            write!(f, " {}", quote(arg))?;
        }
        Ok(())
    }
}

/// Reads all that a program writes, in a thread.
fn all(mut output: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before an error is all there is.
        let _ = output.read_to_end(&mut bytes);
        bytes
    })
}

fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./,=:@+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_as_a_shell_would_take_it() {
        let cmd = Cmd::new("cargo doc --no-deps").env("RUSTDOCFLAGS", "-D warnings").arg("it's");
        assert_eq!(cmd.to_string(), r"RUSTDOCFLAGS='-D warnings' cargo doc --no-deps 'it'\''s'");
    }

    #[test]
    fn failure_names_the_command() {
        let error = Cmd::new("cargo no-such-command").read(Path::new(".")).unwrap_err();
        assert!(error.to_string().contains("cargo no-such-command"));
    }

    #[cfg(unix)]
    #[test]
    fn both_outputs_are_shown_and_failures_told() {
        let here = Path::new(".");
        Cmd::new("seq 1 100000").run_aside(here).unwrap();
        let error = Cmd::new("ls no-such-file").run_aside(here).unwrap_err();
        assert!(error.to_string().contains("`ls no-such-file` failed"), "{error}");
        assert!(Cmd::new("no-such-program").run_aside(here).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn a_program_that_takes_too_long_is_ended() {
        let here = Path::new(".");
        let start = Instant::now();
        let limit = Duration::from_millis(100);
        let error = Cmd::new("sleep 60").read_within(here, limit).unwrap_err();
        assert!(error.to_string().contains("`sleep 60` took more than"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(30));
        // More than a pipe holds.
        let long = Cmd::new("seq 1 100000").read_within(here, Duration::from_secs(30)).unwrap();
        assert_eq!(long.lines().count(), 100_000);
        assert!(Cmd::new("false").read_within(here, Duration::from_secs(30)).is_err());
    }
}
