// The extension module. Importing it loads this library, whose static initialisers (the other files of this
// folder) register the operators; the module itself is empty. Only this folder knows torch and Python: each
// file checks tensors, hands raw pointers to the kernels in ../cpu or ../cuda and registers the operators
// whose schemas are declared in kernels/*/op.py.
#include <Python.h>

extern "C" PyObject* PyInit__C() {
  static PyModuleDef module = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
