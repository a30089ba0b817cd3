// The extension module. Importing it loads this library, whose static initialisers (the other files of this
// folder) register the operators; the module itself is empty. Only this folder knows torch and Python: each
// file checks tensors, hands raw pointers to the kernels in ../cpu or ../cuda and registers the operators
// whose schemas are declared in kernels/*/op.py.
#include <Python.h>
#include <torch/version.h>

// Read from the file before it is loaded (kernels/extension.py): what is built with one torch need not run
// with another.
extern "C" __attribute__((used)) const char tarq_built_with[] = "tarq._C built with torch " TORCH_VERSION;

extern "C" PyObject* PyInit__C() {
  static PyModuleDef module = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
