// SPDX-License-Identifier: Apache-2.0
#include "sim/app/forked_runs.hpp"

#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <exception>
#include <optional>

namespace iommu {

namespace {

// Lines from child to parent: "P done total picoseconds", then "R result" or "E message".
struct Child {
  std::size_t job = 0;
  pid_t process = 0;
  int pipe = -1;
  std::string unread;
  std::optional<ForkedResult> result;
};

bool write_all(int pipe, const std::string& text) {
  std::size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = ::write(pipe, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    done += static_cast<std::size_t>(n);
  }
  return true;
}

std::string one_line(std::string text) {
  std::ranges::replace(text, '\n', ' ');
  return text;
}

[[noreturn]] void be_child(int pipe, std::size_t job, const ForkedJob& work) {
  bool delivered = false;
  try {
    const std::string text = work(job, [pipe](const Progress& p) {
      write_all(pipe, "P " + std::to_string(p.done) + " " + std::to_string(p.total) + " " +
                          std::to_string(p.now.value()) + "\n");
    });
    delivered = write_all(pipe, "R " + text + "\n");
  } catch (const std::exception& e) {
    delivered = write_all(pipe, "E " + one_line(e.what()) + "\n");
  }
  // No destructors and no flush of what the parent had buffered.
  ::_exit(delivered ? 0 : 2);
}

std::optional<Child> start(std::size_t job, const ForkedJob& work, const std::vector<Child>& running) {
  int ends[2];
  if (::pipe(ends) != 0) return std::nullopt;
  std::fflush(nullptr);
  const pid_t process = ::fork();
  if (process == 0) {
    ::close(ends[0]);
    for (const Child& other : running) ::close(other.pipe);
    be_child(ends[1], job, work);
  }
  ::close(ends[1]);
  if (process < 0) {
    ::close(ends[0]);
    return std::nullopt;
  }
  return Child{job, process, ends[0], {}, std::nullopt};
}

std::optional<Progress> parse_progress(const std::string& line) {
  std::uint64_t done = 0;
  std::uint64_t total = 0;
  std::int64_t now = 0;
  const char* end = line.data() + line.size();
  auto [a, e1] = std::from_chars(line.data() + 2, end, done);
  if (e1 != std::errc() || a == end) return std::nullopt;
  auto [b, e2] = std::from_chars(a + 1, end, total);
  if (e2 != std::errc() || b == end) return std::nullopt;
  auto [c, e3] = std::from_chars(b + 1, end, now);
  if (e3 != std::errc()) return std::nullopt;
  return Progress{done, total, Picoseconds(now)};
}

void take_line(Child& child, const std::string& line, const ForkedProgress& progress) {
  if (line.starts_with("R ")) child.result = {ForkedResult::Status::Done, line.substr(2)};
  if (line.starts_with("E ")) child.result = {ForkedResult::Status::Failed, line.substr(2)};
  if (line.starts_with("P ") && progress)
    if (const auto p = parse_progress(line)) progress(child.job, *p);
}

// False at the end of the pipe.
bool read_some(Child& child, const ForkedProgress& progress) {
  char buffer[65536];
  const ssize_t n = ::read(child.pipe, buffer, sizeof buffer);
  if (n < 0) return errno == EINTR;
  if (n == 0) return false;
  child.unread.append(buffer, static_cast<std::size_t>(n));
  for (std::size_t end = child.unread.find('\n'); end != std::string::npos; end = child.unread.find('\n')) {
    take_line(child, child.unread.substr(0, end), progress);
    child.unread.erase(0, end + 1);
  }
  return true;
}

ForkedResult finish(Child& child) {
  ::close(child.pipe);
  int status = 0;
  while (::waitpid(child.process, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0 && child.result) return *child.result;
  if (WIFSIGNALED(status))
    return {ForkedResult::Status::Crashed, std::string("ended by signal: ") + ::strsignal(WTERMSIG(status))};
  return {ForkedResult::Status::Crashed, "ended without a result"};
}

}  // namespace

std::vector<ForkedResult> run_forked(std::size_t jobs, std::size_t parallel, const ForkedJob& work,
                                     const ForkedProgress& progress) {
  std::vector<ForkedResult> results(jobs);
  std::vector<Child> running;
  std::size_t next = 0;
  while (next < jobs || !running.empty()) {
    while (next < jobs && running.size() < std::max<std::size_t>(1, parallel)) {
      if (auto child = start(next, work, running)) {
        running.push_back(std::move(*child));
      } else {
        results[next] = {ForkedResult::Status::Crashed, std::string("no process for it: ") + std::strerror(errno)};
      }
      ++next;
    }
    std::vector<pollfd> waits;
    for (const Child& child : running) waits.push_back({child.pipe, POLLIN, 0});
    if (waits.empty() || ::poll(waits.data(), waits.size(), -1) < 0) continue;
    for (std::size_t i = running.size(); i-- > 0;) {
      if (waits[i].revents == 0 || read_some(running[i], progress)) continue;
      results[running[i].job] = finish(running[i]);
      running.erase(running.begin() + static_cast<std::ptrdiff_t>(i));
    }
  }
  return results;
}

}  // namespace iommu
