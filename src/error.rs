//! The one error type of the library.

use std::fmt;
use std::path::PathBuf;

/// Result of every fallible function of this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, with the operation, the argument, what was expected and what was found.
///
/// Everything a caller can get wrong is an `Error`; a panic is always a bug of this library.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// An argument of an op does not fit: its shape, dtype or value.
    Argument {
        /// The op or function, e.g. `conv2d::forward`.
        op: &'static str,
        /// The argument, named as in the function's signature.
        arg: &'static str,
        /// What would have been accepted.
        expected: String,
        /// What was given.
        found: String,
    },
    /// A file's content is not what it has to be.
    File {
        /// The file.
        path: PathBuf,
        /// Where in the file, in bytes, when that is known.
        offset: Option<u64>,
        /// What the file has to hold there.
        expected: String,
        /// What it holds.
        found: String,
    },
    /// The operating system refused to read or write a file.
    Io {
        /// What was being done, e.g. `read` or `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The device asked for is not there.
    Device {
        /// The device as asked for, e.g. `cuda:0`.
        device: String,
        /// Why it cannot be used.
        reason: String,
    },
    /// A device has not enough memory left.
    OutOfMemory {
        /// The device, e.g. `cuda:0`.
        device: String,
        /// Bytes asked for.
        asked: usize,
        /// Bytes the device still has.
        free: usize,
        /// Bytes it has in all.
        total: usize,
        /// Bytes this program's buffers hold.
        in_use: usize,
        /// A smaller batch that was tried and fits.
        batch_that_fits: Option<usize>,
    },
    /// A computation produced a value that is not finite.
    NotFinite {
        /// What is not finite, e.g. `features.0.weight`.
        what: String,
        /// How many values are NaN or infinite, of how many.
        count: usize,
        /// How many values there are.
        total: usize,
    },
    /// The user asked to stop (Ctrl-C).
    Interrupted,
}

impl Error {
    /// An [`Error::Argument`].
    pub fn argument(
        op: &'static str,
        arg: &'static str,
        expected: impl fmt::Display,
        found: impl fmt::Display,
    ) -> Self {
        Error::Argument {
            op,
            arg,
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    /// An [`Error::OutOfMemory`] that also says which batch fits.
    pub(crate) fn with_batch_that_fits(mut self, rows: Option<usize>) -> Self {
        if let Error::OutOfMemory {
            batch_that_fits, ..
        } = &mut self
        {
            *batch_that_fits = rows;
        }
        self
    }

    /// An [`Error::Argument`] unless the value is finite and at least 0.
    pub(crate) fn unless_not_negative(op: &'static str, arg: &'static str, v: f64) -> Result<()> {
        match v.is_finite() && v >= 0.0 {
            true => Ok(()),
            false => Err(Error::argument(op, arg, "a finite number, at least 0", v)),
        }
    }

    /// An [`Error::Argument`] unless the value is finite and above 0.
    pub(crate) fn unless_positive(op: &'static str, arg: &'static str, v: f64) -> Result<()> {
        match v.is_finite() && v > 0.0 {
            true => Ok(()),
            false => Err(Error::argument(op, arg, "a finite number above 0", v)),
        }
    }

    /// An [`Error::Argument`] unless the count is at least 1.
    pub(crate) fn unless_counted(op: &'static str, arg: &'static str, count: usize) -> Result<()> {
        match count {
            0 => Err(Error::argument(op, arg, "at least 1", 0)),
            _ => Ok(()),
        }
    }

    /// An [`Error::File`] without an offset.
    pub fn file(
        path: impl Into<PathBuf>,
        expected: impl fmt::Display,
        found: impl fmt::Display,
    ) -> Self {
        Error::File {
            path: path.into(),
            offset: None,
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    /// For `map_err`: an [`Error::Io`] of this action on this path.
    pub fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Error::Io {
            action,
            path,
            source,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Argument {
                op,
                arg,
                expected,
                found,
            } => write!(f, "{op}: {arg}: expected {expected}, found {found}"),
            Error::File {
                path,
                offset,
                expected,
                found,
            } => {
                write!(f, "{}", path.display())?;
                if let Some(offset) = offset {
                    write!(f, " at byte {offset}")?;
                }
                write!(f, ": expected {expected}, found {found}")
            }
            Error::Io {
                action,
                path,
                source,
            } => write!(f, "cannot {action} {}: {source}", path.display()),
            Error::Device { device, reason } => write!(f, "device {device}: {reason}"),
            Error::OutOfMemory {
                device,
                asked,
                free,
                total,
                in_use,
                batch_that_fits,
            } => {
                let mib = |bytes: &usize| (*bytes as f64 / (1 << 20) as f64 * 10.0).round() / 10.0;
                write!(
                    f,
                    "device {device}: out of memory: asked for {} MiB, {} of {} MiB are free, \
                     this program holds {} MiB",
                    mib(asked),
                    mib(free),
                    mib(total),
                    mib(in_use)
                )?;
                match batch_that_fits {
                    Some(rows) => write!(f, "; a batch of {rows} rows fits"),
                    None => Ok(()),
                }
            }
            Error::NotFinite { what, count, total } => {
                write!(f, "{what}: {count} of {total} values are NaN or infinite")
            }
            Error::Interrupted => write!(f, "interrupted"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            // The system's reason is part of the message already.
            Error::Io { source, .. } => source.source(),
            _ => None,
        }
    }
}
