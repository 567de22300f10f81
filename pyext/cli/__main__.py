from pyext.cli import main

main()
