// Runs an exported policy: a line of observations in, a line of actions out.
//
//   policy FILE.onnx [TASK_ID]
//
// A file of one task (tdmpc-opt export --policy-only --task NAME) needs no id. A line holds the
// numbers of one observation, separated by spaces; the answer holds the actions in [-1, 1],
// padded to the widest task's where the file has several.

#include <onnxruntime_cxx_api.h>

#include <array>
#include <cstdint>
#include <cstdlib>
#include <iostream>
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

class Policy {
 public:
  Policy(Ort::Env& env, const char* path, const char* task) : session_(open(env, path)) {
    if (metadata(session_, "format") != "tdmpc-opt" || metadata(session_, "kind") != "policy") {
      throw std::runtime_error("not a policy of tdmpc-opt; write one with --policy-only");
    }
    const bool several = session_.GetInputCount() == 2;
    if (several != (task != nullptr)) {
      throw std::runtime_error(several ? "this file holds several tasks; name an id"
                                       : "this file holds one task; leave out the id");
    }
    if (several) task_ = {std::atoll(task)};
  }

  std::vector<float> act(std::vector<float>& obs) {
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const std::array<std::int64_t, 2> shape = {1, static_cast<std::int64_t>(obs.size())};
    const std::array<std::int64_t, 1> rows = {1};
    std::vector<Ort::Value> inputs;
    inputs.push_back(Ort::Value::CreateTensor<float>(memory, obs.data(), obs.size(),
                                                     shape.data(), shape.size()));
    if (!task_.empty()) {
      inputs.push_back(Ort::Value::CreateTensor<std::int64_t>(memory, task_.data(), 1,
                                                              rows.data(), rows.size()));
    }
    const std::array<const char*, 2> names = {"obs", "task"};
    const std::array<const char*, 1> wanted = {"action"};
    const auto outputs = session_.Run(Ort::RunOptions{nullptr}, names.data(), inputs.data(),
                                      inputs.size(), wanted.data(), wanted.size());
    const float* action = outputs[0].GetTensorData<float>();
    return {action, action + outputs[0].GetTensorTypeAndShapeInfo().GetElementCount()};
  }

 private:
  static Ort::Session open(Ort::Env& env, const char* path) {
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(1);
    return Ort::Session(env, path, options);
  }

  Ort::Session session_;
  std::vector<std::int64_t> task_;
};

}  // namespace

int main(int count, char** arguments) {
  if (count < 2 || count > 3) {
    std::cerr << "policy FILE.onnx [TASK_ID]\n";
    return 2;
  }
  try {
    Ort::Env env(ORT_LOGGING_LEVEL_ERROR, "policy");
    Policy policy(env, arguments[1], count == 3 ? arguments[2] : nullptr);
    for (std::string line; std::getline(std::cin, line);) {
      std::istringstream numbers(line);
      std::vector<float> obs;
      for (float number; numbers >> number;) obs.push_back(number);
      if (!numbers.eof()) throw std::runtime_error("not a number in: " + line);
      std::ostringstream answer;
      answer.precision(9);
      for (const float action : policy.act(obs)) answer << action << ' ';
      std::cout << answer.str() << std::endl;
    }
  } catch (const std::exception& error) {
    std::cerr << "policy: " << error.what() << '\n';
    return 1;
  }
  return 0;
}
