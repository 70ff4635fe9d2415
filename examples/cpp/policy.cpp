// Runs an exported policy: a line of observations in, a line of actions out.
//
//   policy FILE.onnx [TASK]
//
// A file of one task (tdmpc-opt export --policy-only --task NAME) needs no name. A line has the
// numbers of one observation, separated by spaces; the answer has the actions in [-1, 1]. To a
// line that cannot be acted on, such as one with a NaN of a sensor, the answer is `error: ` and
// the reason, the next line is read, and the program returns 1 at the end.

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <regex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

// What tdmpc-opt wrote into the file under this name; empty where there is nothing.
std::string metadata(const Ort::Session& session, const char* key) {
  Ort::AllocatorWithDefaultOptions allocator;
  const Ort::ModelMetadata all = session.GetModelMetadata();
  const auto value = all.LookupCustomMetadataMapAllocated(key, allocator);
  return value ? value.get() : "";
}

struct Task {
  std::int64_t id;
  std::size_t obs, actions;  // numbers of an observation and of an action
};

// The task of a name among those of the file's table; one task needs no name.
Task find_task(const std::string& table, const char* name) {
  static const std::regex entry(
      R"re("name": "([^"]*)", "obs_dim": (\d+), "action_dim": (\d+))re");
  std::vector<Task> fitting;
  std::string known;
  std::int64_t id = 0;
  for (std::sregex_iterator it(table.begin(), table.end(), entry), end; it != end; ++it, ++id) {
    const std::smatch& found = *it;
    known += ' ' + found[1].str();
    if (name == nullptr || found[1] == name) {
      fitting.push_back({id, std::stoul(found[2]), std::stoul(found[3])});
    }
  }
  if (fitting.size() != 1) throw std::runtime_error("name one of the tasks:" + known);
  return fitting[0];
}

class Policy {
 public:
  Policy(Ort::Env& env, const char* path, const char* task) : session_(open(env, path)) {
    if (metadata(session_, "format") != "tdmpc-opt" || metadata(session_, "kind") != "policy") {
      throw std::runtime_error("not a policy of tdmpc-opt; write one with --policy-only");
    }
    task_ = find_task(metadata(session_, "tasks"), task);
  }

  std::vector<float> act(std::vector<float>& obs) {
    if (obs.size() != task_.obs) {
      throw std::runtime_error("a line needs " + std::to_string(task_.obs) + " numbers");
    }
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const std::array<std::int64_t, 2> shape = {1, static_cast<std::int64_t>(obs.size())};
    const std::array<std::int64_t, 1> rows = {1};
    std::vector<Ort::Value> inputs;
    inputs.push_back(Ort::Value::CreateTensor<float>(memory, obs.data(), obs.size(),
                                                     shape.data(), shape.size()));
    if (session_.GetInputCount() == 2) {
      inputs.push_back(Ort::Value::CreateTensor<std::int64_t>(memory, &task_.id, 1,
                                                              rows.data(), rows.size()));
    }
    const std::array<const char*, 2> names = {"obs", "task"};
    const std::array<const char*, 1> wanted = {"action"};
    const auto outputs = session_.Run(Ort::RunOptions{nullptr}, names.data(), inputs.data(),
                                      inputs.size(), wanted.data(), wanted.size());
    if (outputs[0].GetTensorTypeAndShapeInfo().GetElementCount() < task_.actions) {
      throw std::runtime_error("the file is damaged: its action is too short");
    }
    const float* action = outputs[0].GetTensorData<float>();
    return {action, action + task_.actions};
  }

 private:
  static Ort::Session open(Ort::Env& env, const char* path) {
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(1);
    return Ort::Session(env, path, options);
  }

  Ort::Session session_;
  Task task_;
};

// Above this, sums of squares in the network overflow, as tdmpc_opt.runtime knows too.
constexpr float kLargestObservation = 1e15f;
constexpr float kLargestAction = 1.001f;  // 1, but for an engine's rounding

// The numbers of a line; a word such as nan, which streams do not read, is named.
std::vector<float> observation(const std::string& line) {
  std::istringstream words(line);
  std::vector<float> obs;
  for (std::string word; words >> word;) {
    char* end = nullptr;
    const float number = std::strtof(word.c_str(), &end);
    if (end != word.c_str() + word.size()) throw std::runtime_error("not a number: " + word);
    // Written so that NaN is refused too.
    if (!(std::fabs(number) <= kLargestObservation)) {
      throw std::runtime_error("not a finite number that the network can take: " + word);
    }
    obs.push_back(number);
  }
  return obs;
}

// A line's answer: the actions.
std::string answer(Policy& policy, const std::string& line) {
  std::vector<float> obs = observation(line);
  std::ostringstream text;
  text.precision(9);
  for (const float action : policy.act(obs)) {
    if (!(std::fabs(action) <= kLargestAction)) {
      throw std::runtime_error("the network's action is not in [-1, 1]");
    }
    text << std::clamp(action, -1.0f, 1.0f) << ' ';
  }
  return text.str();
}

// An error's text in one line, as the answer to one.
std::string one_line(std::string text) {
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 2 || count > 3) {
    std::cerr << "policy FILE.onnx [TASK]\n";
    return 2;
  }
  int status = 0;
  try {
    Ort::Env env(ORT_LOGGING_LEVEL_ERROR, "policy");
    Policy policy(env, arguments[1], count == 3 ? arguments[2] : nullptr);
    for (std::string line; std::getline(std::cin, line);) {
      try {
        std::cout << answer(policy, line) << std::endl;
      } catch (const std::exception& error) {
        std::cout << "error: " << one_line(error.what()) << std::endl;
        status = 1;
      }
      if (!std::cout) throw std::runtime_error("cannot write the actions");
    }
  } catch (const std::exception& error) {
    std::cerr << "policy: " << error.what() << '\n';
    return 1;
  }
  return status;
}
